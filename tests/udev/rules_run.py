"""Runs udev's own rule engine over a recorded device: `udevadm test` in a umockdev testbed.

/dev, /run and the folder of rules are private to a mount namespace, so the machine's own stay as they are. What udev
does is read from its log: later versions than systemd 252 only say what they would do. UDEVADM names another udevadm.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
OWN_RULES: Final = REPOSITORY / "udev" / "rules.d"
SYSUSERS: Final = REPOSITORY / "gateway" / "units" / "sluice.sysusers.conf"
DEVICES: Final = Path(__file__).parent / "devices"
SYSTEM_RULES: Final = Path("/usr/lib/udev/rules.d")
STANDARD_RULES: Final = (
    "50-udev-default.rules",
    "60-autosuspend.rules",
    "60-persistent-v4l.rules",
    "60-serial.rules",
    "99-systemd.rules",
)

_INSIDE: Final = r"""
set -eu
work=$1 action=$2 syspath=$3
mkdir -p "$work/dev"
for device in null zero urandom full; do : >"$work/dev/$device"; mount --bind "/dev/$device" "$work/dev/$device"; done
mount --rbind "$work/dev" /dev
mount -t tmpfs tmpfs /run
mount --bind "$work/rules.d" /usr/lib/udev/rules.d
mount --bind "$work/group" /etc/group
${UDEVADM:-udevadm} test --action="$action" "$syspath" >"$work/out" 2>&1
# Where udev keeps what it knows: the priority of links is told nowhere else by systemd 252.
cat /run/udev/data/* >>"$work/out" 2>/dev/null || true
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What udev made of a device."""

    properties: dict[str, str]
    links: frozenset[str]  # names in /dev/sluice
    group: str  # of the node; empty: not set
    mode: int  # of the node; 0: not known
    runs: tuple[str, ...]  # programs udev would have run
    attributes: dict[str, str]  # of sysfs, as they were written
    priority: int  # of its names, where another device has the same
    log: str

    @property
    def tags(self) -> frozenset[str]:
        """What the device is tagged with."""
        return frozenset(filter(None, self.properties.get("TAGS", "").split(":")))


def missing() -> str:
    """Say what this machine lacks for it; empty if nothing."""
    if shutil.which("umockdev-run") is None:
        return "needs umockdev-run to show udev a device (Debian: umockdev)"
    if shutil.which("udevadm") is None or not SYSTEM_RULES.is_dir():
        return "needs udevadm and its standard rules (Debian: udev)"
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    tried = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"needs a mount namespace: {tried.stderr.strip()}"


def groups() -> dict[str, int]:
    """Return the groups that the rules may name, numbered: those of sysusers, and root."""
    named = [line.split()[1] for line in SYSUSERS.read_text().splitlines() if line.startswith("g ")]
    return {"root": 0, "tty": 5, "input": 4} | {name: 700 + at for at, name in enumerate(named)}


def evaluate(
    work: Path,
    recording: str,
    syspath: str,
    *,
    action: str = "add",
    rules: Sequence[Path] = (),
    answers: str = "",
) -> Outcome:
    """Have udev apply rules to one device of a recording.

    Args:
        work: an empty directory.
        recording: name in `devices/`, without its ending.
        syspath: the device, from `/sys` on.
        action: what happened to it.
        rules: ours; default: all of `udev/rules.d`.
        answers: a rule that sets what a program of udev's would have found out by asking the driver.
    """
    staged = work / "rules.d"
    staged.mkdir()
    for rule in (*(SYSTEM_RULES / name for name in STANDARD_RULES), *(rules or sorted(OWN_RULES.glob("*.rules")))):
        if rule.exists():
            shutil.copy(rule, staged)
    (staged / "59-answers.rules").write_text(answers + "\n")
    (work / "group").write_text("".join(f"{name}:x:{number}:\n" for name, number in groups().items()))
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    recorded = str(DEVICES / f"{recording}.umockdev")
    subprocess.run(
        ["umockdev-run", "--device", recorded, "--", *namespace, "sh", "-c", _INSIDE, "sh", work, action, syspath],
        check=True,
        timeout=60,
        env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    return _outcome((work / "out").read_text(errors="replace"))


def _outcome(log: str) -> Outcome:
    properties = dict(re.findall(r"^ *([.A-Z][A-Z0-9_]*)=(.*)$", log, re.MULTILINE))
    names = {number: name for name, number in groups().items()}
    group = int(_last(r"\.rules:\d+ GROUP (\d+)", log))
    links = properties.get("DEVLINKS", "").split()
    written = re.findall(r"ATTR '/sys/([^']*)' writing '([^']*)'", log)
    written += re.findall(r"skipping writing ATTR\{/sys/([^}]*)\}=\"([^\"]*)\"", log)
    return Outcome(
        properties=properties,
        links=frozenset(link.removeprefix("/dev/sluice/") for link in links if link.startswith("/dev/sluice/")),
        group=names.get(group, str(group)),
        mode=int(_last(r"\.rules:\d+ MODE (\d+)", log), 8),
        runs=tuple(re.findall(r"^ *(?:run: '|RUN\{program\} : )([^'\n]*)", log, re.MULTILINE)),
        attributes={"/".join(path.split("/")[-2:]): value for path, value in written},
        priority=int(_last(r"^(?:L:|.*\(priority=)(-?\d+)", log)),
        log=log,
    )


def _last(pattern: str, log: str) -> str:
    found: list[str] = re.findall(pattern, log, re.MULTILINE)
    return found[-1] if found else "0"
