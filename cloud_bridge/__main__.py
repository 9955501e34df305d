"""`python -m cloud_bridge` is `cloud-bridge`."""

from cloud_bridge.cli import main

main()
