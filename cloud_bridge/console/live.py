"""Live pages: fragments that are rendered again when the store has changed, sent as server-sent events."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from cloud_bridge.errors import StoreError

log: Final = structlog.get_logger()

PAUSE_SECONDS: Final = 0.5
"""Between two looks: at most two updates a second reach a page."""

REFRESH_SECONDS: Final = 10.0
"""Without a change: what is shown may still age."""

STREAM_SECONDS: Final = 900.0
"""A browser connects again by itself, and shows its session again."""

_KEEP_ALIVE_SECONDS: Final = 15.0
_SECOND_NS: Final = 1_000_000_000
_LINE_END: Final = re.compile(r"\r\n|\r|\n")

Fragments = Mapping[str, str]


class Feed:
    """The fragments of one page, rendered once for everyone who looks at it."""

    def __init__(
        self,
        change_counter: Callable[[], int],
        render: Callable[[], Fragments],
        monotonic_ns: Callable[[], int],
    ) -> None:
        """Both callables block and may raise StoreError."""
        self._change_counter = change_counter
        self._render = render
        self._now = monotonic_ns
        self._lock = asyncio.Lock()
        self._fragments: Fragments = {}
        self._change = -1
        self._rendered_at_ns: int | None = None
        self._looked_at_ns: int | None = None
        self._failing = False

    async def latest(self) -> Fragments:
        """Return the fragments as of now, at most PAUSE_SECONDS old; the last ones while the store cannot be read."""
        async with self._lock:
            now = self._now()
            if self._looked_at_ns is None or now - self._looked_at_ns >= PAUSE_SECONDS * _SECOND_NS:
                self._looked_at_ns = now
                await self._look(now)
            return self._fragments

    async def _look(self, now: int) -> None:
        try:
            # Read before rendering: a change in between shows in the next look, never in none.
            change = await run_in_threadpool(self._change_counter)
            if change != self._change or self._is_old(now):
                self._fragments = await run_in_threadpool(self._render)
                self._change, self._rendered_at_ns = change, now
        except StoreError as error:
            if not self._failing:
                log.warning("console_feed_stalled", error=str(error))
            self._failing = True
        else:
            if self._failing:
                log.info("console_feed_resumed")
            self._failing = False

    def _is_old(self, now: int) -> bool:
        return self._rendered_at_ns is None or now - self._rendered_at_ns >= REFRESH_SECONDS * _SECOND_NS


class Broadcaster:
    """Hands out event streams, not more at once than the bridge can serve beside its work."""

    def __init__(self, *, max_streams: int, is_closing: Callable[[], bool], monotonic_ns: Callable[[], int]) -> None:
        self._max_streams = max_streams
        self._is_closing = is_closing
        self._now = monotonic_ns
        self._open = 0

    @property
    def is_full(self) -> bool:
        """Whether one more stream would be too many."""
        return self._open >= self._max_streams

    def stream(self, feed: Feed) -> StreamingResponse:
        """Build the response that follows a feed."""
        return StreamingResponse(
            self._messages(feed), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def _messages(self, feed: Feed) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b"retry: 2000\n\n"
            sent: dict[str, str] = {}
            began = spoke = self._now()
            while not self._is_closing() and self._now() - began < STREAM_SECONDS * _SECOND_NS:
                fragments = await feed.latest()
                changed = {name: html for name, html in fragments.items() if sent.get(name) != html}
                if changed:
                    sent |= changed
                    spoke = self._now()
                    yield b"".join(message(name, html) for name, html in changed.items())
                elif self._now() - spoke >= _KEEP_ALIVE_SECONDS * _SECOND_NS:
                    spoke = self._now()
                    yield b": still here\n\n"
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._open -= 1


def message(name: str, html: str) -> bytes:
    """Frame one fragment; a line end inside it, from whatever device, cannot end the message."""
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(html))
    return f"event: {name}\n{lines}\n".encode(errors="replace")
