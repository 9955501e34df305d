"""From the outbox to the cloud bridge, and from the gateway to people and programs on the site: everything MQTT."""
