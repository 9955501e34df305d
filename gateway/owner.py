"""What a command leaves below the state directory belongs to whoever the directory belongs to.

On an appliance only root logs in, and the gateway is a user of its own. A file that root leaves among its files is one
that the gateway cannot read: it would begin without what the file says. So a command of root works there as the
gateway's user. It also keeps root from writing through links which a gateway that was broken into may have put there.
"""

import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.errors import GatewayError


class OwnerError(GatewayError):
    """Whoever a directory belongs to cannot do what is asked for, or cannot be found out."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whoever something belongs to. Without an entry in the list of users there are no groups but the directory's."""

    name: str
    user: int
    group: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Return the owner of a directory; where it is not there, of the one in which it would be made.

        Raises:
            OwnerError: neither can be looked at.
        """
        for place in (directory, *directory.absolute().parents):
            try:
                status = place.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise OwnerError(f"{place}: {error.strerror or error}; its owner is not known") from error
            return cls._with_groups(status.st_uid, status.st_gid)
        raise OwnerError(f"{directory}: there is no such place")

    @classmethod
    def _with_groups(cls, user: int, group: int) -> Self:
        try:
            entry = pwd.getpwuid(user)
        except KeyError:
            return cls(f"user {user}", user, group, (group,))
        return cls(entry.pw_name, user, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def words_for_a_stranger(path: Path) -> str:
    """Say whom to be where the system refuses this process a path because it is another user's; "": it is not so.

    The directory says whose the path is to be: a file of another user in a directory of ours is a mistake there.
    """
    for place in path.absolute().parents:
        try:
            user = place.stat().st_uid
        except OSError:  # somewhere above is the directory that keeps us out
            continue
        if user == os.geteuid():
            return ""
        try:
            name = pwd.getpwuid(user).pw_name
        except KeyError:
            name = f"#{user}"  # as `sudo` takes it
        return f"{path} belongs to {name}: call it as that user, `sudo -u '{name}' …`"
    return ""


def other_owner_of(directory: Path) -> str:
    """Return the name of whoever a directory belongs to where root is about to work in it; "": all is well.

    For who must not become the owner, because root may be meant, as in a container.
    """
    try:
        owner = _other_owner(directory) if directory.exists() else None
    except (OwnerError, OSError):
        return ""
    return "" if owner is None else owner.name


def become_owner(directory: Path) -> None:
    """Become the owner of a directory for good, with the groups of its account; nothing changes unless root does this.

    For commands that need nothing of root's from here on. There is no way back, so whatever the files of the owner make
    this process load or start can do no more than the owner.

    Raises:
        OwnerError: the owner cannot be found out, or may not read the library that this program runs with.
    """
    owner = _other_owner(directory)
    if owner is None:
        return
    with as_owner(directory):
        if not os.access(os.__file__, os.R_OK, effective_ids=True):
            raise OwnerError(
                f"{directory} belongs to {owner.name}, who may not read the Python of this program ({os.__file__}): "
                f"install it where {owner.name} may, such as below /opt"
            )
    with _allowed(directory, owner):
        os.setgroups(owner.groups)
        os.setresgid(owner.group, owner.group, owner.group)
        os.setresuid(owner.user, owner.user, owner.user)  # last: after it nothing of this is allowed any more


@contextlib.contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Be the owner of a directory meanwhile; nothing changes unless root does this.

    For commands that need root as well, around reading and writing alone: only the effective ids change, for every
    thread, and what is started meanwhile gets half of it.

    Raises:
        OwnerError: the owner cannot be found out.
    """
    owner = _other_owner(directory)
    if owner is None:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        with _allowed(directory, owner):
            os.setgroups(owner.groups)
            os.setegid(owner.group)
            os.seteuid(owner.user)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        with contextlib.suppress(PermissionError):  # then they were not changed either
            os.setgroups(groups)


@contextlib.contextmanager
def _allowed(directory: Path, owner: Account) -> Iterator[None]:
    """Say what to do where root may not become others, as in a container that has dropped these capabilities."""
    try:
        yield
    except PermissionError as error:
        raise OwnerError(
            f"{directory} belongs to {owner.name}, and this process may not become that user: {error.strerror}; call "
            f"it as {owner.name}, or with the capabilities SETGID and SETUID"
        ) from error


def _other_owner(directory: Path) -> Account | None:
    """Return whom root is to be instead; None: nobody else."""
    if os.geteuid() != 0:
        return None
    owner = Account.of(directory)
    return owner if owner.user != 0 else None


def require_reach(path: Path) -> None:
    """Make sure that whoever this process is now may read what a command was given.

    Raises:
        OwnerError: it may not, as with a folder of root's.
    """
    needed = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    if os.access(path, needed, effective_ids=True):
        return
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = f"user {os.geteuid()}"
    raise OwnerError(
        f"{path} cannot be read by {name}, who does this; copy it to where {name} may read it, such as a new folder "
        "in /tmp"
    )
