"""One process of the gateway, from its configuration to its end, or to its beginning anew."""

import asyncio
import os
import sys
from collections.abc import Callable

from gateway import hangup
from gateway.config import Config
from gateway.configload import Reading
from gateway.daemon import Daemon
from gateway.vault.hardening import harden_process


def run(config: Config, reread: Callable[[], Reading]) -> int:
    """Run a gateway until it is told to stop; returns the exit status. With a changed configuration it begins anew.

    `reread` reads the configuration again, for those who ask by SIGHUP.

    Raises:
        GatewayError: it cannot be started.
    """
    hangup.hold()
    harden_process()  # before anything secret is read
    # Default 5 ms: beside a thread that computes in Python, taking the lock back after each call into SQLite
    # or the network then makes one durable record cost tens of milliseconds (measured: 37 ms, and 1 ms like this).
    sys.setswitchinterval(0.0005)
    if asyncio.run(_run(config, reread)):
        # The same process for whoever watches it, and nothing left over in it. It reads the file once more.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own arguments, as they were
    return 0


async def _run(config: Config, reread: Callable[[], Reading]) -> bool:
    return await Daemon(config, reread).run()
