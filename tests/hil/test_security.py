"""What the rig does before a secured site starts: the steps of a maker, a build server and an operator."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.children import RigError
from hil.loopback.rig import GATEWAY_ID, Rig
from hil.loopback.security import BOOT_STATE, REGISTERS, SecuredSite, measurements
from hil.loopback.tpm import PLACES, SoftwareTpm
from tests.simulators import swtpm
from tests.simulators.mosquitto import BINARY

LACKING = swtpm.missing() or ("" if BINARY else "mosquitto is not installed: apt-get install mosquitto")
needs_a_tpm = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def rig_below(folder: Path) -> Rig:
    sources = {"machine": {"type": "health"}}
    return Rig(folder / "rig", sources, {"machine": {"source": "machine", "model": "process-anomaly"}}, security="tpm")


def prepared(rig: Rig) -> SecuredSite:
    rig.prepare()
    assert rig.site is not None
    return rig.site


def vault_status(site: SecuredSite) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.on_device("vault", "status", "--json"))
    return found


@needs_a_tpm
def test_a_prepared_site_gives_the_key_out_in_the_approved_boot_state_alone(tmp_path: Path) -> None:
    (tmp_path / "rig" / "tpm").mkdir(parents=True)
    (tmp_path / "rig" / "tpm" / "tpm2-00.permall").write_bytes(b"of an earlier run")
    with rig_below(tmp_path) as rig:
        site = prepared(rig)
        found = vault_status(site)
        assert found["initialised"]
        assert found["problems"] == []
        assert set(found["store"]["pcrs"]) == {str(number) for number in REGISTERS}
        assert all(int(value, 16) for value in found["store"]["pcrs"].values())
        approved = json.loads(site.in_cloud("identity", "states", "list", "--json"))
        assert approved["name"] == BOOT_STATE
        assert approved["pcrs"] == found["store"]["pcrs"]
        claim = json.loads(site.in_cloud("identity", "token", "list", "--json"))
        assert claim["gateway"] == GATEWAY_ID
        assert stat.S_IMODE(site.claim.stat().st_mode) == 0o600
        assert site.tpm is not None
        site.tpm.kill()
        site.measured = measurements("something else")
        site.boot()
        with pytest.raises(RigError, match="PCR 4"):
            site.on_device("vault", "unseal", "--check")
    assert not site.tpm.child.running


@pytest.mark.parametrize(
    ("there", "missing", "package"), [((), "swtpm", "swtpm"), (("swtpm",), "swtpm_setup", "swtpm-tools")]
)
def test_a_program_that_is_missing_is_named_with_its_package(
    tmp_path: Path, there: tuple[str, ...], missing: str, package: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in there:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)

    def make() -> None:
        SoftwareTpm(tmp_path / "tpm", tmp_path / "log", places=str(programs)).manufacture(tmp_path / "maker")

    with pytest.raises(RigError, match=rf"{missing} is not installed; `make setup` .*`apt-get install {package}`"):
        make()


@needs_a_tpm
def test_a_tpm_of_another_maker_has_another_root(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tpm = SoftwareTpm(tmp_path / name, tmp_path / "log", places=PLACES)
        assert not tpm.is_manufactured
        tpm.manufacture(tmp_path / f"maker-{name}")
        assert tpm.is_manufactured
    roots = {file.read_bytes() for file in tmp_path.glob("maker-*/*rootca-cert.pem")}
    assert len(roots) == 2
