"""Commands in the guest: the guest's end runs as a process of its own, on a socket in the place of the virtio port."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.rig import guest_agent
from hil.rig.agent import SCRIPT, Agent, AgentError, credentials, typed


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """The host's end, with the guest's end on a pair of terminals behind a socket, as QEMU would have it."""
    place = tmp_path / "agent"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(place))
    server.listen()
    master, slave = os.openpty()
    os.set_blocking(master, True)
    subprocess.run(["stty", "-F", os.ttyname(slave), "raw", "-echo"], check=True)
    guest = subprocess.Popen([sys.executable, str(SCRIPT), os.ttyname(slave)])
    over = threading.Event()

    def up() -> None:
        while not over.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            down = threading.Thread(target=carry_down, args=(client,), daemon=True)
            down.start()
            while piece := client.recv(4096):
                os.write(master, piece)

    def carry_down(client: socket.socket) -> None:
        try:
            while not over.is_set():
                client.sendall(os.read(master, 4096))
        except OSError:
            return

    threading.Thread(target=up, daemon=True).start()
    made = Agent(place)
    try:
        yield made
    finally:
        over.set()
        made.close()
        guest.kill()
        guest.wait()
        server.close()
        os.close(slave)
        os.close(master)


def test_a_command_comes_back_with_its_output_and_its_status(agent: Agent) -> None:
    answer = agent.run("echo out; echo err >&2; exit 3", seconds=20.0)
    assert (answer.out, answer.err, answer.code) == ("out\n", "err\n", 3)


def test_an_answer_arrives_whole_however_long_it_is_and_however_little_the_port_takes_at_once() -> None:
    class Port(io.BytesIO):
        given = b""

        def write(self, data: Any) -> int:
            piece = bytes(data[:1000])
            self.given += piece
            return len(piece)

    port = Port(json.dumps({"id": 1, "run": "head -c 50000 /dev/zero | tr '\\0' x"}).encode() + b"\n")
    with pytest.raises(EOFError):
        guest_agent.serve(Ending(port))  # type: ignore[arg-type]
    answer = json.loads(port.given)
    assert (answer["code"], answer["out"]) == (0, "x" * 50_000)


class Ending:
    """A port that says once what it holds; the real one waits for ever."""

    def __init__(self, port: io.BytesIO) -> None:
        self._port = port
        self.write, self.flush = port.write, port.flush

    def readline(self) -> bytes:
        line = self._port.readline()
        if not line:
            raise EOFError
        return line


def test_a_command_that_takes_too_long_is_ended_and_the_next_one_is_answered(agent: Agent) -> None:
    assert agent.run("sleep 30", seconds=0.5).code == 124
    assert agent.run("echo still there", seconds=20.0).out == "still there\n"


def test_a_file_arrives_whole_and_with_its_mode(agent: Agent, tmp_path: Path) -> None:
    content = bytes(range(256)) * 3
    agent.put(content, str(tmp_path / "file"), mode=0o640)
    assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640 & ~current_umask()
    with pytest.raises(AgentError, match=r"cannot write .*: .*No such file"):
        agent.put(b"", str(tmp_path / "no" / "folder"))


def test_nobody_at_the_other_end_is_told(tmp_path: Path) -> None:
    lonely = Agent(tmp_path / "nobody")
    assert not lonely.answers(seconds=0.2)
    with pytest.raises(AgentError, match="did not answer"):
        lonely.run("true", seconds=0.1)


def test_the_credentials_carry_the_very_script(tmp_path: Path) -> None:
    carried = dict(text.removeprefix("io.systemd.credential.binary:").split("=", 1) for text in credentials())
    assert base64.b64decode(carried["sluice.rig-agent"]) == SCRIPT.read_bytes()
    assert all(len(line) < 4000 for line in typed())


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
