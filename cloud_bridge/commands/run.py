"""`cloud-bridge run`."""

import os
from pathlib import Path

import click

from cloud_bridge import app, logs
from cloud_bridge.commands.options import Place, placed


@click.command()
@placed
@click.option("--broker", "broker_url", metavar="URL", help="Instead of the file's brokers: mqtt://127.0.0.1:1883.")
@click.option("--take-over", is_flag=True, help="Take the records of the brokers even if a bridge has an older store.")
def run(file: Path | None, store_url: str | None, broker_url: str | None, *, take_over: bool) -> None:
    """Run the bridge until it is told to stop."""
    config = Place(file, store_url).config(broker_url)
    logs.configure(config.log)
    app.run(config, os.environ, take_over=take_over)
