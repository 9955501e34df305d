"""An organisation's authority: a root and an intermediate that signs, kept by `openssl ca`, with a revocation list."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

SCRIPTS: Final = Path(__file__).parents[2] / "docs" / "issuers"

_CONFIG: Final = """\
[ca]
default_ca = own
[own]
dir = {home}
database = {home}/index.txt
new_certs_dir = {home}/new
crlnumber = {home}/crlnumber
certificate = {home}/intermediate.pem
private_key = {home}/intermediate-key.pem
default_md = sha256
default_crl_days = 7
unique_subject = no
rand_serial = yes
policy = anything
copy_extensions = {copies}
crl_extensions = list
[anything]
commonName = supplied
[list]
authorityKeyIdentifier = keyid
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[req]
distinguished_name = none
[none]
"""


def missing() -> str:
    """Say which program is not installed; "" when all are."""
    lacking = [name for name in ("openssl", "jq", "flock") if shutil.which(name) is None]
    return f"{lacking[0]} is not installed: apt-get install {lacking[0]}" if lacking else ""


class OrganisationCa:
    """Knobs: `copies`: which extensions of a request it takes over, as `copy_extensions` has it."""

    def __init__(self, home: Path, *, copies: str = "none") -> None:
        self.home = home
        (home / "new").mkdir(parents=True)
        (home / "index.txt").touch()
        (home / "crlnumber").write_text("01\n")
        self.config = home / "ca.cnf"
        self.config.write_text(_CONFIG.format(home=home, copies=copies))
        self._key("root")
        whole = ("-config", "ca.cnf", "-new", "-days", "30", "-extensions", "authority")
        self._openssl("req", "-x509", *whole, "-key", "root-key.pem", "-subj", "/CN=Example Root", "-out", "root.pem")
        self.anchors = home / "anchors.pem"
        self.list = home / "devices.crl"
        self.renew_intermediate()

    def renew_intermediate(self) -> None:
        """Make the authority that signs, or a new one in its place, with a list of its own."""
        self._key("intermediate")
        self._openssl(
            *("req", "-config", "ca.cnf", "-new", "-key", "intermediate-key.pem", "-subj", "/CN=Example Devices"),
            *("-out", "intermediate.csr"),
        )
        self._openssl(
            *("x509", "-req", "-in", "intermediate.csr", "-CA", "root.pem", "-CAkey", "root-key.pem"),
            *("-CAcreateserial", "-days", "30", "-extfile", "ca.cnf", "-extensions", "authority"),
            *("-out", "intermediate.pem"),
        )
        intermediate = (self.home / "intermediate.pem").read_bytes()
        (self.home / "chain.pem").write_bytes(intermediate)
        self.anchors.write_bytes((self.home / "root.pem").read_bytes() + intermediate)
        self.write_list()

    @property
    def command(self) -> list[str]:
        """What `identity.issuer.command` is to be."""
        return [str(SCRIPTS / "openssl-ca.sh"), str(self.home)]

    def revoke(self, serial: str) -> None:
        """Take a certificate back, as the organisation's people do, and write the list anew."""
        self._openssl("ca", "-config", "ca.cnf", "-revoke", str(self._file(serial)))
        self.write_list()

    def write_list(self, *, seconds: int | None = None) -> None:
        """Write the list; it is good for a week, or for so many seconds."""
        life = ("-crlsec", str(seconds)) if seconds is not None else ()
        self._openssl("ca", "-config", "ca.cnf", "-gencrl", *life, "-out", self.list.name)

    def _key(self, name: str) -> None:
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}-key.pem")

    def _file(self, serial: str) -> Path:
        return next(file for file in self.home.joinpath("new").glob("*.pem") if int(file.stem, 16) == int(serial, 16))

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.home, check=True, capture_output=True)
