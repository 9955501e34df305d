"""Looks at the YAML of a rig before anything is installed or built for it: `python -m hil.rig.environment FILE`."""

import re
import sys
from pathlib import Path
from typing import Final

import yaml

_ENVS: Final = Path(__file__).parents[1] / "envs"
_BLANK: Final = re.compile(r"<[^<>]+>")


def wrong(file: Path) -> list[str]:
    """List what keeps a file from describing a rig, each with its place and what to do."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(f"hil/envs/{each.name}" for each in sorted(_ENVS.glob("*.yaml")))
        return [f"{file}: {getattr(error, 'strerror', None) or 'is no text'}; there are: {there}"]
    blanks = [
        f"{file}:{number}: fill in {', '.join(found)}, or remove what your rig lacks"
        for number, line in enumerate(text.splitlines(), start=1)
        if (found := _BLANK.findall(line.split(" #")[0])) and not line.startswith("#")
    ]
    if blanks:
        return blanks
    try:
        document = yaml.safe_load(re.sub(r"!template\b", "", text))
    except yaml.YAMLError as error:
        return [f"{file}: {' '.join(str(error).split())}"]
    if not isinstance(document, dict) or not isinstance(document.get("targets"), dict):
        return [f"{file}: no `targets` in it, so it describes no rig; see hil/envs/coral-devboard.yaml"]
    if "main" not in document["targets"]:
        return [f"{file}: targets: the tests take the one that is called `main`"]
    return _images(file, document.get("images") or {})


def _images(file: Path, images: dict[str, str]) -> list[str]:
    """What is missing; `make` builds that of a virtual rig."""
    if "virtual-" in file.name:
        return []
    places = {name: file.parent / image for name, image in images.items()}
    return [
        f"{file}: images.{name}: {place.resolve()} is not there; how it is had says docs/hil.md, A rig for boards"
        for name, place in places.items()
        if not place.is_file()
    ]


def main(words: list[str]) -> int:
    """Tell it; exit status 2 if something is wrong."""
    found = wrong(Path(words[0]))
    sys.stderr.writelines(f"make hil: {each}\n" for each in found)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
