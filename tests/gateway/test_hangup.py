"""A SIGHUP is a request for as long as the process lives, also while it begins anew."""

import os
import pty
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, sys
from gateway import hangup
if "hold" in sys.argv:
    hangup.hold()
print("here", flush=True)
sys.stdin.readline()
if "again" in sys.argv:
    os.execv(sys.executable, [sys.executable, *(each for each in sys.orig_argv[1:] if each not in ("again", "hold"))])
async def main():
    asked = asyncio.Event()
    hangup.listen(asyncio.get_running_loop(), asked.set)
    print("listens", flush=True)
    async with asyncio.timeout(20):
        await asked.wait()
    print("asked", flush=True)
asyncio.run(main())
"""


def started(*words: str, ignoring: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(["nohup"] if ignoring else []), sys.executable, "-c", PROGRAM, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def goes_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_request_before_anybody_listens_is_kept() -> None:
    with started("hold") as process:
        assert said(process) == "here"
        process.send_signal(signal.SIGHUP)
        goes_on(process)
        assert [said(process), said(process)] == ["listens", "asked"]
    assert process.returncode == 0


def test_control_without_the_hold_it_ends_the_process() -> None:
    with started() as process:
        assert said(process) == "here"
        process.send_signal(signal.SIGHUP)
        process.wait(20)
    assert process.returncode == -signal.SIGHUP


def test_a_request_while_the_process_begins_anew_reaches_its_next_life() -> None:
    with started("hold", "again") as process:
        assert said(process) == "here"
        process.send_signal(signal.SIGHUP)
        goes_on(process)
        assert said(process) == "here"
        process.send_signal(signal.SIGHUP)
        goes_on(process)
        assert [said(process), said(process)] == ["listens", "asked"]
    assert process.returncode == 0


def test_in_a_terminal_it_ends_the_process_as_its_end_should() -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "hold"], stdin=theirs, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert said(process) == "here"
            process.send_signal(signal.SIGHUP)
            process.wait(20)
        assert process.returncode == -signal.SIGHUP
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not os.access("/usr/bin/nohup", os.X_OK), reason="needs nohup")
def test_a_process_that_is_to_ignore_it_does() -> None:
    with started("hold", ignoring=True) as process:
        assert said(process) == "here"
        process.send_signal(signal.SIGHUP)
        goes_on(process)
        assert said(process) == "listens"
        process.send_signal(signal.SIGHUP)
        process.terminate()
        process.wait(20)
    assert process.returncode == -signal.SIGTERM
