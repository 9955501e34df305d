"""Takes over a changed configuration on request, if it is valid; otherwise the gateway goes on with the one it has.

The gateway does not change while it runs: it stops in order and its process begins anew, so that the new configuration
finds what any start finds. Records wait in the outbox meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import msgspec
import structlog

from gateway.config import Config
from gateway.configload import Reading
from gateway.errors import ConfigError
from gateway.threads import in_thread

log = structlog.get_logger()

_SHOWN = 20

Tell = Callable[[str], None]
"""Told in a few words what came of a request."""


class Reload:
    """Decides on each request whether the gateway is to begin anew. Belongs to the event loop."""

    def __init__(self, running: Config, reread: Callable[[], Reading], tell: Tell) -> None:
        """`reread` reads the file again, on a thread, and may raise ConfigError."""
        self._running = running
        self._reread = reread
        self._tell = tell
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have the file looked at; soon, and once for all who ask meanwhile."""
        self._asked.set()

    async def changed(self) -> None:
        """Return once the gateway should begin anew."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if await self._look():
                return

    async def _look(self) -> bool:
        try:
            reading = await in_thread("reload", self._reread)
        except ConfigError as error:
            return self._refuse([str(error)])
        if reading.config is None:
            return self._refuse([f"line {one.line}: {one.path}: {one.message}" for one in reading.errors])
        keys = changed_keys(self._running, reading.config)
        if not keys:
            log.info("reload_changed_nothing")
            self._tell("reload: nothing has changed")
            return False
        if "gateway.id" in keys:  # a start may refuse that: what waits in the outbox has the name it has
            return self._refuse(["gateway.id: stop the gateway to give it another name"])
        log.info("reload_begins", changed=keys[:_SHOWN], more=max(0, len(keys) - _SHOWN))
        return True

    def _refuse(self, problems: list[str]) -> bool:
        remedy = "`gateway config validate` tells all; the gateway goes on with the configuration it has"
        log.error("reload_refused", problems=problems[:_SHOWN], count=len(problems), remedy=remedy)
        self._tell(f"reload refused, running as before: {problems[0]}")
        return False


def changed_keys(before: Config, after: Config) -> list[str]:
    """Name the keys that differ, as in `pipelines.dock.rules`; values, which may be secret, are not told."""
    plain = [msgspec.to_builtins(config, enc_hook=str) for config in (before, after)]
    return list(_differences(plain[0], plain[1], ""))


def _differences(before: object, after: object, place: str) -> Iterator[str]:
    if before == after:
        return
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield place
        return
    for key in dict.fromkeys([*before, *after]):
        inner = f"{place}.{key}" if place else str(key)
        if key not in before or key not in after:
            yield inner
        else:
            yield from _differences(before[key], after[key], inner)
