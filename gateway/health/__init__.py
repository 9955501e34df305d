"""How the gateway and its machine are doing: metrics and probes."""
