"""A PostgreSQL server of our own: Debian's package, a temporary directory, a Unix socket, no network."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tests.simulators.waiting import wait_for


def binaries() -> Path | None:
    """Return the directory with `initdb`, the newest first; None if PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """Started on entry, gone on exit. It refuses to run as root, so root runs it as another user."""

    def __init__(self, bin_directory: Path) -> None:
        self._bin = bin_directory
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user: list[str] = []
        if os.geteuid() == 0:
            user = next(u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody"))
            user = next((u for u in pwd.getpwall() if u.pw_name == "postgres"), user)
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.directory}&user=sluice"

    def __enter__(self) -> Self:
        data = str(self.directory / "data")
        options = ["-A", "trust", "-U", "sluice", "-E", "UTF8", "--locale=C", "--no-sync"]
        command = [*self._user, str(self._bin / "initdb"), "-D", data, *options]
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        self.start()
        return self

    def start(self) -> None:
        server = [str(self._bin / "postgres"), "-D", str(self.directory / "data"), "-k", str(self.directory)]
        command = ["setpriv", "--pdeathsig=KILL", "--", *self._user, *server, "-c", "listen_addresses="]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        wait_for(self._answers, seconds=30, what=f"PostgreSQL answers, see {self.directory}/log")

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            command = ["pgrep", "-P", str(self._process.pid)]
            children = subprocess.run(command, check=False, capture_output=True, text=True).stdout
            self._process.kill()
            self._process.wait()
            # Its children notice; the next start waits for them, else it refuses the shared memory.
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.split()), seconds=20)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its children, e.g. SIGSTOP: it neither answers nor ends."""
        if self._process is not None:
            command = ["pgrep", "-P", str(self._process.pid)]
            children = subprocess.run(command, check=False, capture_output=True, text=True).stdout
            for pid in (self._process.pid, *map(int, children.split())):
                os.kill(pid, number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": clients are sent away
            self._process.wait(60)

    def make(self, database: str) -> str:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
