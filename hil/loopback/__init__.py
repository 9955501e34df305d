"""The loopback rig: broker, cloud bridge and gateway on one machine, with what a demonstration needs."""
