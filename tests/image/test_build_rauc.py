"""The image's boot chooser and its check before an installation, behind the real RAUC; nothing is booted.

RAUC tells handlers of a bundle's own metadata since 1.9. Where this machine's is older, that of the image's tools is
taken, once an image has been built here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.osupdate.errors import (
    BadSignatureError,
    BelowFloorError,
    OnTrialError,
    OsUpdateError,
    RaucUnavailableError,
)
from gateway.osupdate.rauc import RaucCli
from image.builder import layers
from image.builder.boards import load
from tests.simulators.waiting import wait_for

REPO = Path(__file__).parents[2]
IMAGE = REPO / "image"
SCRIPTS = IMAGE / "overlay/usr/lib/sluice"


def rauc() -> list[str]:
    """Return the command; empty where there is none that is new enough."""
    found = shutil.which("rauc")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"rauc (\d+)\.(\d+)", said)
        if version is not None and (int(version[1]), int(version[2])) >= (1, 9):
            return [found]
    for loader in sorted(REPO.glob("var/image/cache/tools-*/usr/lib64/ld-linux-x86-64.so.2")):
        tree = loader.parents[2]
        return [str(loader), "--library-path", f"{tree}/usr/lib/x86_64-linux-gnu", f"{tree}/usr/bin/rauc"]
    return []


RAUC = rauc()
LACKING = [name for name in ("mksquashfs", "dbus-daemon", "openssl") if shutil.which(name) is None]
LACKING += [] if RAUC else ["rauc 1.9 or newer"]
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="RAUC mounts bundles, which needs root"),
]


class Device:
    """Two slots in files, a boot partition in a folder, and RAUC's service on a bus of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = folder / "efi/loader/entries"
        self.entries.mkdir(parents=True)
        (self.entries / "sluice-a.conf").write_text("title A\nsort-key sluice\nversion 1\nefi /EFI/sluice/a.efi\n")
        (folder / "data").mkdir()
        (folder / "tries").write_text("3\n")
        (folder / "release.json").write_text('{"floor": "1.0.0", "target": "uefi-amd64"}')
        for slot in "ab":
            (folder / f"root-{slot}").write_bytes(bytes(1 << 20))
        places = {
            "/dev/disk/by-partlabel/": f"{folder}/",
            "/usr/lib/sluice/": f"{folder}/",
            "/usr/share/sluice/": f"{folder}/",
            "/data/rauc": f"{folder}/data",
            '"/efi"': f'"{folder}/efi"',
            "/proc/cmdline": f"{folder}/cmdline",
            "bundle-formats=verity": "bundle-formats=plain",  # the machine that tests may have no device-mapper
        }
        texts = {name: (SCRIPTS / name).read_text() for name in ("bootchooser", "pre-install")}
        texts["system.conf"] = layers.system_conf(load(IMAGE, "uefi-amd64"))
        for name, text in texts.items():
            (folder / name).write_text(re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text))
            (folder / name).chmod(0o755)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=vendor"),
                *("-keyout", folder / "key.pem", "-out", folder / "rauc-keyring.pem"),
            ],
            check=True,
            capture_output=True,
        )
        self.rauc = RaucCli([*RAUC, f"--conf={folder / 'system.conf'}"])
        self._service: subprocess.Popen[bytes] | None = None

    def bundle(self, version: str) -> str:
        content = self.folder / version
        content.mkdir()
        (content / "root.img").write_bytes(version.encode() * 1000)
        meta = f"[meta.sluice]\nversion={version}\ntarget=uefi-amd64\n"
        manifest = (
            f"[update]\ncompatible=sluice-uefi-amd64\nversion={version}\n\n[image.rootfs]\nfilename=root.img\n\n{meta}"
        )
        (content / "manifest.raucm").write_text(manifest)
        out = self.folder / f"{version}.raucb"
        keys = [f"--cert={self.folder / 'rauc-keyring.pem'}", f"--key={self.folder / 'key.pem'}"]
        subprocess.run([*RAUC, *keys, "bundle", content, out], check=True, capture_output=True)
        return str(out)

    def boot(self) -> str:
        """Do what systemd-boot does, and start the service; returns the slot."""
        self.stop()

        def rank(file: Path) -> tuple[bool, int]:
            number = re.search(r"^version (\d+)", file.read_text(), re.MULTILINE)
            return "+0" not in file.name, int(number[1]) if number else 0

        entry = max(self.entries.glob("*.conf"), key=rank)
        name = re.fullmatch(r"sluice-([ab])(?:-trial\+(\d)(?:-(\d))?)?\.conf", entry.name)
        assert name is not None
        if name[2]:
            entry.rename(self.entries / f"sluice-{name[1]}-trial+{int(name[2]) - 1}-{int(name[3] or 0) + 1}.conf")
        (self.folder / "cmdline").write_text(f"quiet rauc.slot={name[1]} ro\n")
        words = [*RAUC, f"--conf={self.folder / 'system.conf'}", f"--mount={self.folder / 'mnt'}"]
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            *words,
            f"--override-boot-slot={name[1]}",
            "service",
        ]
        with (self.folder / "service.log").open("ab") as log:
            self._service = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, seconds=60.0)
        return name[1]

    def _answers(self) -> bool:
        with suppress(RaucUnavailableError):
            return bool(self.rauc.status().slots)
        return False

    def stop(self) -> None:
        if self._service is not None:
            self._service.terminate()
            self._service.wait(20)

    def good(self) -> dict[str, bool | None]:
        return {slot.bootname: slot.good for slot in self.rauc.status().slots}

    def installs(self, bundle: str) -> None:
        self.rauc.install(bundle, lambda _percent, _words: None)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address"], stdout=subprocess.PIPE, text=True
    ) as bus:
        assert bus.stdout is not None
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.stdout.readline().strip())
        monkeypatch.setenv("DBUS_STARTER_BUS_TYPE", "session")
        made = Device(tmp_path)
        try:
            yield made
        finally:
            made.stop()
            bus.terminate()


def test_a_slot_is_tried_marked_and_kept_and_nothing_goes_over_the_last_good_one_meanwhile(device: Device) -> None:
    first, second = device.bundle("1.1.0"), device.bundle("1.2.0")
    assert device.boot() == "a"
    assert device.good() == {"a": True, "b": False}
    device.installs(first)
    status = device.rauc.status()
    assert (status.primary, status.other and status.other.version) == ("b", "1.1.0")
    assert device.boot() == "b"
    assert device.good() == {"a": True, "b": False}, "it runs, and has not proved itself"
    with pytest.raises(OnTrialError, match="has not been marked good"):
        device.installs(second)
    assert device.good()["a"], "the last one that has is untouched"
    subprocess.run([*RAUC, "status", "mark-good", "booted"], check=True, capture_output=True)
    assert device.good() == {"a": True, "b": True}
    entry = (device.entries / "sluice-b.conf").stat().st_ino
    subprocess.run([*RAUC, "status", "mark-good", "booted"], check=True, capture_output=True)
    assert (device.entries / "sluice-b.conf").stat().st_ino == entry, "at each boot, and nothing is written for it"
    device.installs(second)
    assert device.rauc.status().primary == "a"


def test_a_slot_that_never_proves_itself_is_left_after_its_tries(device: Device) -> None:
    bundle = device.bundle("1.1.0")
    device.boot()
    device.installs(bundle)
    assert [device.boot() for _ in range(4)] == ["b", "b", "b", "a"]
    assert device.good() == {"a": True, "b": False}


def test_what_must_not_be_installed_is_refused_with_what_it_means(device: Device) -> None:
    old = device.bundle("0.9.0")
    device.boot()
    with pytest.raises(BelowFloorError, match="below the floor"):
        device.installs(old)
    assert device.good() == {"a": True, "b": False}
    assert "version 0.9.0 is below the floor 1.0.0" in (device.folder / "service.log").read_text()


def test_a_medium_that_gives_nothing_is_no_bad_signature(device: Device) -> None:
    bundle = Path(device.bundle("1.1.0"))
    device.boot()
    folder = device.folder / "folder.raucb"
    folder.mkdir()
    for place in (folder, device.folder / "nowhere.raucb"):
        with pytest.raises(OsUpdateError) as passing:
            device.rauc.info(str(place))
        assert not isinstance(passing.value, BadSignatureError)
    # The control: one that can be read and is not what was signed.
    bundle.write_bytes(b"x" + bundle.read_bytes()[1:])
    with pytest.raises(BadSignatureError):
        device.rauc.info(str(bundle))
