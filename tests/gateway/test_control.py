"""The control socket: who may ask, what is answered, and who may own it."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import Gateway
from gateway.control import MAX_REQUEST_BYTES, ControlServer, Handler, ask, socket_path
from gateway.errors import ControlError, OutboxError, RequestRefusedError


class Answer(msgspec.Struct):
    words: str


def _failing() -> dict[str, Any]:
    raise OutboxError("the disk is gone")


HANDLERS: Mapping[str, Handler] = {
    "status": lambda: Answer("fine"),
    "plain": lambda: {"n": 1},
    "large": lambda: {"text": "x" * 2_000_000},
    "failing": _failing,
}


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.get_running_loop().create_task(ControlServer(path, HANDLERS).run())
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(_listens, path):
            if task.done():
                await task
            await asyncio.sleep(0.005)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _listens(path: Path) -> bool:
    try:
        ask(path, "plain")
    except ControlError:
        return False
    return True


async def raw(path: Path, data: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    line = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    reply: dict[str, Any] = msgspec.json.decode(line)
    return reply


async def test_a_running_gateway_answers(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        assert await asyncio.to_thread(ask, tmp_path / "s", "status") == {"words": "fine"}
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}
        assert len((await asyncio.to_thread(ask, tmp_path / "s", "large"))["text"]) == 2_000_000


async def test_nobody_but_the_owner_may_ask(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


async def test_an_error_of_a_handler_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        with pytest.raises(RequestRefusedError, match="the disk is gone"):
            await asyncio.to_thread(ask, tmp_path / "s", "failing")
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}


@pytest.mark.parametrize(
    "request_line",
    [b"", b"\n", b"hello\n", b"[]\n", b'{"request":5}\n', b'{"request":"status","more":1}\n', b"\xff\xff\n",
     b"x" * (MAX_REQUEST_BYTES * 4) + b"\n", b"[" * 4000 + b"\n", b'{"request":"reboot"}\n'],
)  # fmt: skip
async def test_a_bad_request_gets_an_error_and_the_server_goes_on(tmp_path: Path, request_line: bytes) -> None:
    async with serving(tmp_path / "s"):
        reply = await raw(tmp_path / "s", request_line)
        assert "request" in reply["error"]
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}


async def test_silent_clients_do_not_keep_others_from_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        silent = [await asyncio.open_unix_connection(tmp_path / "s") for _ in range(10)]
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}
        for _, writer in silent:
            writer.close()


async def test_a_second_gateway_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        with pytest.raises(ControlError, match="another gateway is running"):
            await ControlServer(tmp_path / "s", HANDLERS).run()
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ControlError, match="no gateway is running"):
        ask(tmp_path / "s", "status")
    async with serving(tmp_path / "s"):
        assert await asyncio.to_thread(ask, tmp_path / "s", "plain") == {"n": 1}
    assert not (tmp_path / "s").exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ControlError, match="is no socket"):
        await ControlServer(tmp_path / "s", HANDLERS).run()
    assert (tmp_path / "s").read_text() == "precious"


async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    async with serving(deep / "gateway.sock"):
        assert await asyncio.to_thread(ask, deep / "gateway.sock", "plain") == {"n": 1}


def test_a_missing_gateway_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="start it with `gateway run"):
        ask(tmp_path / "none", "status")


def test_a_hanging_gateway_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(ControlError, match=r"did not answer within 0\.05 s"):
            ask(tmp_path / "s", "status", timeout_seconds=0.05)


def test_the_socket_is_in_the_runtime_directory_if_there_is_one() -> None:
    assert socket_path(Gateway(id="a", state_directory=Path("/s"))) == Path("/s/gateway.sock")
    assert socket_path(Gateway(id="a", runtime_directory=Path("/r"))) == Path("/r/gateway.sock")
