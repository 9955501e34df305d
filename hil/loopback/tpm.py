"""A TPM 2.0 in software (swtpm), for a machine that has none or whose own is none of the rig's business."""

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from gateway.errors import ConfigError, GatewayError
from gateway.vault.tpm.connection import Connection, Tpm
from hil.loopback.children import Child, RigError, free_port

PLACES: Final = "/usr/bin:/usr/local/bin:/usr/sbin:/usr/share/swtpm"
_SECONDS: Final = 10.0
_SETUP_SECONDS: Final = 60.0

AUTHORITY_FILES: Final = ("swtpm-localca-rootca-cert.pem", "issuercert.pem")
"""The maker's root, and the intermediate that has signed: a TPM has no room for more than its own certificate."""


class SoftwareTpm:
    """One swtpm on two neighbouring ports of loopback, with its state in a directory.

    It has three slots for objects, no resource manager, and serves one connection at a time: the next one waits.
    """

    def __init__(self, state: Path, log: Path, *, places: str = PLACES) -> None:
        """Prepare; nothing is started yet. places: where programs are looked for, as in PATH.

        Raises:
            RigError: swtpm is not installed.
        """
        self._places = places
        binary = self._program("swtpm", package="swtpm")
        self.state = state
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.port = _two_free_ports()
        # The library knows no other way to swtpm than TCP; the state is what nobody else may read.
        self.child = Child(
            "swtpm",
            [
                *(binary, "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600"),
                *("--flags", "startup-clear"),
                *("--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1,disconnect"),
                *("--ctrl", f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1"),
            ],
            log,
        )

    def manufacture(self, maker: Path) -> None:
        """Give it an endorsement key with a certificate, as the maker of a chip does. Before the first start.

        Args:
            maker: directory of the maker's authority, made there if there is none; see `AUTHORITY_FILES`.

        Raises:
            RigError: a tool is missing or fails.
        """
        setup, authority = (self._program(name, package="swtpm-tools") for name in ("swtpm_setup", "swtpm_localca"))
        maker.mkdir(parents=True, exist_ok=True)
        settings, options, tools = (maker / f"{name}.conf" for name in ("authority", "options", "setup"))
        settings.write_text(
            f"statedir = {maker}\nsigningkey = {maker}/signkey.pem\nissuercert = {maker}/issuercert.pem\n"
            f"certserial = {maker}/certserial\n"
        )
        options.write_text("--platform-manufacturer Sluice\n--platform-version 1\n--platform-model loopback\n")
        tools.write_text(
            f"create_certs_tool={authority}\ncreate_certs_tool_config={settings}\ncreate_certs_tool_options={options}\n"
        )
        command = [setup, "--tpm2", "--tpmstate", str(self.state), "--create-ek-cert", "--config", str(tools)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SETUP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RigError(f"swtpm_setup took longer than {_SETUP_SECONDS:.0f} s") from error
        if done.returncode:
            raise RigError(f"swtpm_setup failed:\n{done.stdout.strip()}\n{done.stderr.strip()}")

    @property
    def is_manufactured(self) -> bool:
        """Whether it has a state of its own already."""
        return any(self.state.glob("tpm2-*"))

    @property
    def tcti(self) -> str:
        """How to reach it, as in `vault.tcti`."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def start(self) -> None:
        """Switch it on: registers begin anew, what is in NV stays.

        Raises:
            RigError: it does not start.
        """
        self.child.start()
        self.child.wait_until(self._listens, "swtpm listens", _SECONDS)

    def measure(self, measurements: dict[int, bytes]) -> None:
        """Measure into registers of the bank SHA-256, as firmware and boot loader do. Digests have 32 bytes.

        Raises:
            RigError: the TPM, or the library that speaks to it, is not there.
        """

        def work(tpm: Tpm) -> None:
            types = tpm.pytss
            for register, digest in measurements.items():
                value = types.TPMT_HA(hashAlg=types.TPM2_ALG.SHA256, digest=types.TPMU_HA(sha256=digest))
                tpm.esys.pcr_extend(types.ESYS_TR(register), types.TPML_DIGEST_VALUES([value]))

        try:
            Connection(self.tcti, seconds=_SECONDS).call("measuring", work)
        except ConfigError as error:
            raise RigError(f"{error} (`make setup` does both)") from error
        except GatewayError as error:
            raise RigError(str(error)) from error

    def kill(self) -> None:
        """Like a TPM that drops off its bus."""
        self.child.kill()

    def _program(self, name: str, *, package: str) -> str:
        found = shutil.which(name, path=self._places)
        if found is None:
            raise RigError(f"{name} is not installed; `make setup` installs it, or `apt-get install {package}`")
        return found

    def _listens(self) -> bool:
        # A connection would count as a client, and there is one at a time; the kernel's table tells as well.
        ports = {f"0100007F:{port:04X}" for port in (self.port, self.port + 1)}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        return ports <= {row[1] for row in rows if row[3] == "0A"}


def _two_free_ports() -> int:
    """Return a port that is free together with the next one, where the control channel is looked for."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            port = free_port()
            with contextlib.suppress(OSError, OverflowError):
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
                return port
    raise RigError("no two neighbouring ports of loopback are free")
