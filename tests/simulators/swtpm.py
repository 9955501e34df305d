"""A TPM 2.0 in software (swtpm) on free ports of loopback, with a state directory of its own."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.simulators.waiting import wait_for

BINARY = shutil.which("swtpm", path="/usr/bin:/usr/local/bin")
SETUP = shutil.which("swtpm_setup", path="/usr/bin:/usr/local/bin")


def missing() -> str:
    """Say what tests with a TPM lack on this machine; empty when nothing."""
    if BINARY is None:
        return "swtpm is not installed: apt-get install swtpm"
    if importlib.util.find_spec("tpm2_pytss") is None:
        return "tpm2-pytss is not installed: pip install 'sluice[tpm]'"
    return ""


class Swtpm:
    """Knobs: `kill`, `restart` (a reboot: registers are reset), `stalled` (it hangs), `ek_certificate`.

    It has three slots for objects and no resource manager, and serves one connection at a time; the next one waits.
    """

    def __init__(self, directory: Path, *, ek_certificate: bool = False) -> None:
        self.state = directory / "swtpm"
        self.state.mkdir(parents=True, exist_ok=True)
        self.log = directory / "swtpm.log"
        self.port = _two_free_ports()
        self._process: subprocess.Popen[bytes] | None = None
        if ek_certificate:
            self._make_certificates(directory)

    @property
    def tcti(self) -> str:
        """How to reach it."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        for _ in range(5):
            if self._start():
                return
            self.port = _two_free_ports()  # somebody else was faster
        raise AssertionError(f"swtpm does not start: {self.log.read_text()[-500:]}")

    def _start(self) -> bool:
        command = ["setpriv", "--pdeathsig=KILL", "--", BINARY or "swtpm", "socket", "--tpm2"]
        command += ["--tpmstate", f"dir={self.state}", "--flags", "startup-clear"]
        command += ["--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1,disconnect"]
        command += ["--ctrl", f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self._ended() or self._listens(), seconds=10, what="swtpm listens")
        return not self._ended()

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _listens(self) -> bool:
        # A connection would count as a client; the kernel's table tells as well.
        ports = {f"0100007F:{port:04X}" for port in (self.port, self.port + 1)}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return ports <= {row[1] for row in rows if row[3] == "0A"}

    def kill(self) -> None:
        """Like a TPM that drops off the bus."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Reboot: registers start anew, what is in NV stays."""
        self.kill()
        self.start()

    def extend(self, register: int, digest: bytes) -> None:
        """Measure something into a register, bank SHA-256, as another boot would have."""
        pytss = importlib.import_module("tpm2_pytss")
        esys = pytss.ESAPI(self.tcti)
        try:
            value = pytss.TPMT_HA(hashAlg=pytss.TPM2_ALG.SHA256, digest=pytss.TPMU_HA(sha256=digest))
            esys.pcr_extend(pytss.ESYS_TR(register), pytss.TPML_DIGEST_VALUES([value]))
        finally:
            esys.close()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """It takes commands and answers none."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _make_certificates(self, directory: Path) -> None:
        """Let swtpm_setup make an endorsement key with a certificate from a CA of its own."""
        ca = directory / "swtpm-ca"
        ca.mkdir()
        local = directory / "swtpm-localca.conf"
        local.write_text(
            f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\n"
            f"certserial = {ca}/certserial\n"
        )
        options = directory / "swtpm-localca.options"
        options.write_text("--platform-manufacturer Sluice\n--platform-version 1\n--platform-model test\n")
        setup = directory / "swtpm_setup.conf"
        tool = shutil.which("swtpm_localca", path="/usr/bin:/usr/local/bin:/usr/share/swtpm")
        setup.write_text(
            f"create_certs_tool={tool}\ncreate_certs_tool_config={local}\ncreate_certs_tool_options={options}\n"
        )
        command = [SETUP or "swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--create-ek-cert", "--overwrite"]
        command += ["--config", str(setup), "--logfile", str(self.log)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.ca_directory = ca

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _two_free_ports() -> int:
    """Return a port that is free together with the next one, where swtpm's control channel is looked for."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
    raise AssertionError("no two neighbouring ports are free")
