"""Blocking work on a thread of its own, waited for by the event loop.

Not on asyncio's own pool, which everything shares: six to eight threads on a small board. What waits there for a disk
or a lock holds up everybody, also whoever would have made that disk work again.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Leave:
    """Ends the wait for a thread that hangs, from any thread; the thread itself stays where it is."""

    def __init__(self) -> None:
        self._fail: Callable[[BaseException], None] | None = None

    def attach(self, fail: Callable[[BaseException], None]) -> None:
        """Take what ends the present wait."""
        self._fail = fail

    def __call__(self, error: BaseException) -> None:
        """Have whoever waits get this error."""
        if self._fail is not None:
            self._fail(error)


class _Errand(Generic[T]):
    """Work that is done on another thread, and what the event loop awaits meanwhile."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[T] = self._loop.create_future()

    def __call__(self) -> None:
        """Do it, on whichever thread this is called, unless nobody waits for it any more."""
        if self.done.cancelled():
            return
        try:
            settle = partial(self._succeed, self._work())
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            settle = partial(self._fail, error)
        self._tell(settle)

    def give_up(self, error: BaseException) -> None:
        """Have whoever waits get this error; from any thread."""
        self._tell(partial(self._fail, error))

    def _tell(self, settle: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _succeed(self, result: T) -> None:
        if not self.done.done():
            self.done.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def in_thread(name: str, work: Callable[[], T], leave: Leave | None = None) -> T:
    """Run blocking work on a named thread of its own, and return what it returns.

    `leave` ends the wait early.
    """
    errand = _Errand(work)
    if leave is not None:
        leave.attach(errand.give_up)
    threading.Thread(target=errand, name=name, daemon=True).start()
    return await errand.done


class Worker:
    """One named thread for blocking work, one piece after the other. It begins with the first piece.

    Belongs to the event loop. For what is asked often; a piece that hangs holds up those behind it, and nobody else.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def do(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` on the thread, and return what it returns or raise what it raises."""
        errand = _Errand(partial(work, *args, **kwargs))
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(target=_work_through, args=(self._queue,), name=self._name, daemon=True).start()
        self._queue.put(errand)
        return await errand.done

    def close(self) -> None:
        """Let the thread end when it has done what it was given; does not wait for it. `do` begins another."""
        if self._queue is not None:
            self._queue.put(None)
        self._queue = None


def _work_through(pieces: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (piece := pieces.get()) is not None:
        piece()
