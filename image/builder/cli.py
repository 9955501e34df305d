"""The command line: `image/build TARGET`, or `make image TARGET=…`."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from image.builder import advice, boards, sizes, turns
from image.builder.build import Build, Order
from image.builder.errors import BuildError, MissingError
from image.builder.progress import Progress
from image.builder.release import of_repository

REPO: Final = Path(__file__).resolve().parents[2]
MISSING: Final = 2
INTERRUPTED: Final = 130
_REGISTER: Final = re.compile(r"([0-9]{1,2})=([0-9A-Fa-f]{64})")
_LAST_REGISTER: Final = 23


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="image/build", description="Build the appliance image of a target. Needs root.")
    made.add_argument("target", nargs="?", default="uefi-amd64", help="a folder of image/boards; default: %(default)s")
    made.add_argument("--list", action="store_true", help="list the targets and what they take of their vendors")
    made.add_argument("--output", type=Path, help="default: var/image/TARGET")
    made.add_argument(
        "--keys", type=Path, help="folder of the vendor's keys; default: var/image/keys, made when missing"
    )
    made.add_argument("--vendor", type=Path, help="folder with the parts that cannot be had from Debian")
    made.add_argument(
        "--rig", action="store_true", help="also disk-rig.raw and bundle-rig.raucb: a root shell on the serial line"
    )
    made.add_argument("--rig-only", action="store_true", help="like --rig, without the files that ship")
    made.add_argument("--version", help="instead of that in pyproject.toml")
    made.add_argument("--floor", help="instead of that in image/release.toml")
    made.add_argument("--generation", type=int, help="instead of that in image/release.toml")
    made.add_argument(
        "--overlay", type=Path, action="append", default=[], help="a folder laid over the root last; repeat"
    )
    made.add_argument("--cmdline", action="append", default=[], help="one more argument of the kernel; repeat")
    made.add_argument(
        "--pcr", action="append", default=[], metavar="N=HEX", help="one more register in the vault's approvals"
    )
    made.add_argument("--bundle-only", action="store_true", help="no disk")
    made.add_argument("--contents-only", action="store_true", help="lay up the root, leave it in OUTPUT/work, and stop")
    made.add_argument("--offline", action="store_true", help="use the cache alone")
    made.add_argument(
        "--apt-sources", type=Path, help="sources.list to use, {arch} for the architecture; default: this machine's"
    )
    made.add_argument("--json", action="store_true", help="print the manifest, with times, on standard output")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run a build. Exit status 0: done; 1: it failed; 2: something has to be supplied first; 130: interrupted."""
    options = parser().parse_args(words)
    if options.list:
        return _list(as_json=options.json)
    out: Path = (options.output or REPO / "var/image" / options.target).resolve()
    progress = Progress(out / "build.log")
    os.umask(0o022)  # modes are part of the root hash
    # Whoever ends the build gets the same clean-up as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        order = _order(options, out)
        progress.log.parent.mkdir(parents=True, exist_ok=True)
        with turns.only_one(out):
            progress.log.write_text("")
            progress.say(f"Sluice {order.release.version} for {order.board.name} ({order.board.description})")
            build = Build(order, progress)
            document = build.run()
    except MissingError as error:
        sys.stderr.write(f"image/build: {error}\n")
        return MISSING
    except BuildError as error:
        sys.stderr.write(f"image/build: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"image/build: {advice.about_os(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            "image/build: interrupted; finished steps are in the cache, and the files of the last build are untouched\n"
        )
        return INTERRUPTED
    _finish(document, build.contents, progress, out, as_json=options.json)
    return 0


def _order(options: argparse.Namespace, out: Path) -> Order:
    board = boards.load(REPO / "image", options.target)
    cache = Path(os.environ.get("SLUICE_IMAGE_CACHE") or REPO / "var/image/cache").resolve()
    if cache == out:
        raise BuildError(f"{out} cannot be both the cache and what a build writes to: see --output, SLUICE_IMAGE_CACHE")
    cache.mkdir(parents=True, exist_ok=True)
    for overlay in options.overlay:
        if not overlay.is_dir():
            raise BuildError(f"--overlay {overlay}: no such folder")
    return Order(
        repo=REPO,
        board=board,
        release=of_repository(REPO, options.version, options.floor, options.generation),
        out=out,
        cache=cache,
        keys=(options.keys or REPO / "var/image/keys").resolve(),
        may_make_keys=options.keys is None,
        vendor=options.vendor.resolve() if options.vendor else None,
        overlays=tuple(each.resolve() for each in options.overlay),
        registers=registers(options.pcr),
        apt_sources=options.apt_sources,
        cmdline=tuple(options.cmdline),
        offline=options.offline,
        rig=options.rig or options.rig_only,
        shipping=not options.rig_only,
        bundle_only=options.bundle_only,
        contents_only=options.contents_only,
    )


def registers(words: Sequence[str]) -> dict[str, str]:
    """Read `--pcr N=HEX`: a vault would never open where one that cannot be was approved.

    Raises:
        BuildError: one is none; the message names it.
    """
    found: dict[str, str] = {}
    for word in words:
        match = _REGISTER.fullmatch(word)
        if match is None:
            raise BuildError(f"--pcr {word!r} is none: number and SHA-256 value, 64 hexadecimal digits, as in 7=ab01…")
        number = str(int(match[1]))
        if number in {"11", "12", "13"}:
            raise BuildError(f"--pcr {number}: the build works out that register by itself")
        if int(number) > _LAST_REGISTER:
            raise BuildError(f"--pcr {number}: a TPM has 0 to {_LAST_REGISTER}")
        if number in found:
            raise BuildError(f"--pcr {number} is there twice: an image is approved for one value")
        found[number] = match[2].lower()
    return found


def _list(*, as_json: bool) -> int:
    found = [boards.load(REPO / "image", name) for name in boards.names(REPO / "image")]
    if as_json:
        rows = [
            {
                "target": each.name,
                "description": each.description,
                "vendor": boards.listed(each.vendor),
                "booted": each.booted,
            }
            for each in found
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for each in found:
        booted = "built and booted in the tests" if each.booted else "not booted yet"
        sys.stdout.write(f"{each.name:16} {each.description} ({each.bootloader}; {booted})\n")
        for part in each.vendor:
            sys.stdout.write(f"{'':18}{part.path}: {part.what} ({'needed' if part.required else 'optional'})\n")
    return 0


def _finish(
    document: dict[str, object], contents: Sequence[sizes.Content], progress: Progress, out: Path, *, as_json: bool
) -> None:
    if as_json:
        times = [
            {"step": each.name, "seconds": round(each.seconds, 1), "cached": each.cached} for each in progress.done
        ]
        sys.stdout.write(json.dumps({**document, "steps": times}, indent=2) + "\n")
        return
    progress.say("in the root, unpacked:")
    for line in sizes.table(contents):
        progress.say(f"  {line}")
    progress.say(f"done, in {out}:")
    files = document["files"]
    assert isinstance(files, dict)
    for name, facts in files.items():
        progress.say(f"  {facts['bytes'] / 1e6:9.1f} MB  {name}")


if __name__ == "__main__":
    sys.exit(main())
