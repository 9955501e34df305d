import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
import pytest

from cloud_bridge import control
from cloud_bridge.control import Answer, ControlServer, Question, RunningBridge, answer, import_question
from cloud_bridge.errors import ControlError
from cloud_bridge.store.base import Store
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.transfer import chunks
from tests.cloud_bridge.test_transfer import line, picture


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Path]:
    """The directory of a running server, deeper than the address of a socket may be long."""
    directory = tmp_path / ("d" * 60) / ("e" * 60)
    store = SqliteStore(directory / "bridge.db")
    store.open()
    running = ControlServer(directory, store, "sluice")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(running.run())
        while not (directory / control.SOCKET_NAME).exists():
            await asyncio.sleep(0.01)
        yield directory
        running.stop()
    assert not (directory / control.SOCKET_NAME).exists()
    store.close()


def test_lines_are_imported_and_bad_ones_told(store: Store) -> None:
    question = import_question([line(1), b"rubbish", line(2) + b"\n"], 10, None)
    said = answer(store, "sluice", question)
    assert (said.inserted, said.duplicates) == (2, 0)
    assert [problem.split(":")[0] for problem in said.bad] == ["line 11"]


async def test_a_running_bridge_answers(server: Path) -> None:
    def ask() -> list[Answer]:
        bridge = RunningBridge(server)
        answers = [bridge.ask(import_question([line(1)], 1, None)), bridge.ask(Question(ask="discard", letter_id=5))]
        bridge.close()
        return answers

    imported, discarded = await asyncio.to_thread(ask)
    assert imported.inserted == 1
    assert not discarded.settled


async def test_a_stick_full_of_pictures_is_imported_by_a_running_bridge(server: Path) -> None:
    """Five hundred of them in one question would be more than the bridge takes."""
    stick = io.BytesIO(b"".join(picture(n, 200_000) for n in range(1, 501)))

    def ask(pieces: Iterable[list[bytes]]) -> int:
        bridge = RunningBridge(server)
        inserted = sum(bridge.ask(import_question(lines, 1, None)).inserted for lines in pieces)
        bridge.close()
        return inserted

    assert await asyncio.to_thread(ask, chunks(stick)) == 500
    with pytest.raises(ControlError):
        await asyncio.to_thread(ask, [stick.getvalue().splitlines(keepends=True)])


async def test_nonsense_is_answered_with_an_error_and_the_next_question_is_heard(server: Path) -> None:
    with control._short(server) as path:
        reader, writer = await asyncio.open_unix_connection(path)
    for nonsense in (b"rubbish\n", b"{}\n", b'{"ask":"import","lines":"%"}\n'):
        writer.write(nonsense)
        assert msgspec.json.decode(await reader.readline(), type=Answer).error
    writer.write(b'{"ask":"discard","letter_id":1}\n')
    assert not msgspec.json.decode(await reader.readline(), type=Answer).error
    writer.close()


def test_nobody_there_is_an_error_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"bridge\.sock"):
        RunningBridge(tmp_path)
