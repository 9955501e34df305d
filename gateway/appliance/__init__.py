"""The life of an appliance around the gateway: from the box to its fleet, through updates, to the next owner.

Pure parts decide (`claim`, `plan`, `soak`), the shells beside them look at sticks, cameras, sockets and partitions.
Only what `sluice-provision.service` and the erasing unit run needs root; everything else runs as the gateway's user.
"""
