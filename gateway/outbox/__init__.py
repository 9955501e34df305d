"""The durable queue between the decisions and the uplink. Use `gateway.outbox.store`."""
