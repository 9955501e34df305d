"""The rig's way to talk to QEMU, against a real one that has no disk and whose processors stand still."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.loopback.children import Child
from hil.rig.qmp import Qmp, QmpError

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed: apt-get install qemu-system-x86"
)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "qmp"
    words = ("-S", "-nodefaults", "-display", "none", "-m", "16M", "-machine", "q35", "-accel", "tcg")
    card = ("-netdev", "user,id=net,restrict=on", "-device", "e1000,netdev=net,id=nic")
    command = ["qemu-system-x86_64", *words, *card, "-qmp", f"unix:{place},server=on,wait=off"]
    qemu = Child("qemu", command, tmp_path / "qemu.log")
    qemu.start()
    try:
        qemu.wait_until(place.exists, "QEMU listens")
        yield place
    finally:
        qemu.kill()


def test_a_command_is_carried_out_and_answered(monitor: Path) -> None:
    with Qmp(monitor) as qmp:
        assert qmp.command("query-status")["running"] is False
        qmp.command("set_link", name="nic", up=False)
        assert "nic" in qmp.monitor("info network")
        qmp.command("cont")
        assert qmp.command("query-status")["running"] is True


def test_events_are_kept_until_somebody_waits_for_them(monitor: Path) -> None:
    with Qmp(monitor) as qmp:
        qmp.command("cont")
        qmp.command("stop")
        assert qmp.command("query-status")["running"] is False
        assert qmp.wait_for("RESUME", seconds=5.0)["event"] == "RESUME"
        assert qmp.wait_for("STOP", seconds=5.0)["event"] == "STOP"
        assert qmp.events == []
        with pytest.raises(QmpError, match="told no SHUTDOWN within"):
            qmp.wait_for("SHUTDOWN", seconds=0.2)


def test_a_refusal_is_told_in_the_words_of_qemu(monitor: Path) -> None:
    with Qmp(monitor) as qmp, pytest.raises(QmpError, match=r"refused set_link: .*'nothing'"):
        qmp.command("set_link", name="nothing", up=False)


def test_a_machine_that_is_gone_is_told(monitor: Path, tmp_path: Path) -> None:
    qmp = Qmp(monitor)
    qmp.command("quit")
    with pytest.raises(QmpError, match="did not answer"):
        repeat(lambda: qmp.command("query-status"))
    qmp.close()
    with pytest.raises(QmpError, match="no QEMU answers at"):
        Qmp(tmp_path / "nobody")


def repeat(ask: Callable[[], object]) -> None:
    """Ask until it fails: the machine needs a moment to end."""
    for _ in range(1000):
        ask()
