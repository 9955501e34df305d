"""Runs commands in a tree, in a mount namespace of its own: whatever happens, nothing stays mounted on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image.builder.progress import Progress

ISOLATED: Final = (
    *("unshare", "--mount", "--propagation", "private"),
    # All processes of a command end with it, however it ends, and with them what they have mounted.
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""Runs a command in namespaces of its own."""

# /tmp and /run are file systems of their own in there, so that mount points leave no trace in the tree.
_SCRIPT: Final = """
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; : >>"$root$2"; fi
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """A system in a folder."""

    root: Path
    progress: Progress
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, argv: Sequence[str | Path], binds: Mapping[Path, str]) -> list[str]:
        """Return the command line that runs `argv` in there; `binds` are folders or files and where to show them, below
        /run."""
        mounts = [text for source, target in binds.items() for text in (str(source), target)]
        shell = [*ISOLATED, "sh", "-euc", _SCRIPT, "sh", str(self.root)]
        return [*shell, *mounts, "--", *(str(each) for each in argv)]

    def run(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> None:
        """Run a command into the log.

        Raises:
            BuildError: it failed.
        """
        self.progress.run(self.command(argv, binds or {}), env=self._environment())

    def capture(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> str:
        """Run a command and return what it printed.

        Raises:
            BuildError: it failed.
        """
        return self.progress.capture(self.command(argv, binds or {}), env=self._environment())

    def _environment(self) -> dict[str, str]:
        base = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "HOME": "/run",
        }
        return base | dict(self.environment)
