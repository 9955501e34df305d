"""`gateway vault`, from making a policy key to an image that is too old."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.gateway.vault.device import plain_release
from tests.simulators import swtpm
from tests.simulators.swtpm import Swtpm

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.captureWarnings(capture=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["vault", *arguments], env={"SLUICE_CONFIG": str(tmp_path / "gateway.yaml")})
        assert result.exit_code == code, (arguments, result.output, result.exception)
        return result

    return invoke


def configure(tmp_path: Path, vault: str) -> None:
    (tmp_path / "gateway.yaml").write_text(
        f"gateway: {{id: dock-7, state_directory: .}}\nsources: {{}}\npipelines: {{}}\n{vault}\n"
    )


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    if reason := swtpm.missing():
        pytest.skip(reason)
    with Swtpm(tmp_path) as running:
        (tmp_path / "policy").mkdir()
        configure(
            tmp_path,
            f'vault: {{level: tpm, tcti: "{running.tcti}", policy_key_file: build.pem.pub, policy_directory: policy}}',
        )
        yield running


def test_from_a_policy_key_to_an_image_that_is_too_old(tpm: Swtpm, run: Run, tmp_path: Path) -> None:
    key, policies = str(tmp_path / "build.pem"), str(tmp_path / "policy")

    def approve(name: str, *what: str) -> None:
        run("policy", "sign", "--key", key, "--out", policies, "--name", name, *what)

    run("policy", "keygen", key)
    assert (tmp_path / "build.pem").stat().st_mode & 0o777 == 0o600
    run("policy", "keygen", key, code=1)  # never overwritten
    assert "gateway vault policy sign --first" in run("init", code=1).output
    approve("first", "--first")
    approve("image-1", "--this-machine", "--counter-at-most", "1")
    run("init")
    status = json.loads(run("status", "--json").stdout)
    assert status["store"]["ready"]
    assert status["store"]["counter"] == 1
    assert {row["name"]: row["holds"] for row in status["store"]["approvals"]} == {"first": False, "image-1": True}
    plain, _ = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    assert "remove them" in run("import", str(plain)).stderr
    assert "all keys open" in run("unseal", "--check").output
    run("rotate")
    run("reseal")
    assert json.loads(run("unseal", "--check", "--json").stdout)["unsealed"]
    approve("step", "--advance-from", "1")
    assert "could not unseal any more" in run("advance", code=1).output
    approve("image-2", "--this-machine", "--counter-at-most", "2")
    assert "the counter is 2" in run("advance").output
    (tmp_path / "policy/image-2.policy.json").unlink()
    assert "image-1: the counter is 2, approved up to 1" in run("unseal", "--check", code=1).stderr
    refused = json.loads(run("unseal", "--check", "--json", code=1).stdout)
    assert refused["reasons"] == ["image-1: the counter is 2, approved up to 1: this image is too old"]
    tpm.extend(11, bytes(32))
    shown = run("status", code=1).stdout
    assert "PCR 11 is" in shown
    assert "PCR 11     " in shown


def test_a_vault_that_is_made_in_a_boot_state_without_an_approval_says_so(tpm: Swtpm, run: Run, tmp_path: Path) -> None:
    key, policies = str(tmp_path / "build.pem"), str(tmp_path / "policy")
    run("policy", "keygen", key)
    run("policy", "sign", "--key", key, "--out", policies, "--name", "first", "--first")
    told = json.loads(run("init", "--json", code=5).stdout)
    assert (told["sealed"], told["approved"], told["level"]) == (True, False, "tpm")
    assert told["reasons"] != []
    again = run("init", code=5)
    assert "the vault is sealed, level tpm" in again.stdout
    assert "bring an approval of this boot state" in again.stderr
    run(
        "policy",
        "sign",
        "--key",
        key,
        "--out",
        policies,
        "--name",
        "image-1",
        "--this-machine",
        "--counter-at-most",
        "9",
    )
    told = json.loads(run("init", "--json").stdout)
    assert (told["approved"], told["reasons"]) == (True, []), "the control"


def test_policies_are_listed_with_what_they_approve(tpm: Swtpm, run: Run, tmp_path: Path) -> None:
    key, policies = str(tmp_path / "build.pem"), str(tmp_path / "policy")
    run("policy", "keygen", key)
    registers = ["--pcr", f"7={'ab' * 32}", "--pcr", f"11={'CD' * 32}"]
    run("policy", "sign", "--key", key, "--out", policies, "--name", "a", *registers, "--counter-at-most", "4")
    assert "PCR 11 cdcdcdcdcdcd…, PCR 7 abababababab…, counter up to 4" in run("policy", "show").stdout
    (tmp_path / "policy/b.policy.json").write_text("{}")
    assert "no signed policy" in run("policy", "show", code=1).stdout
    shown = json.loads(run("policy", "show", "--json", code=1).stdout)
    assert [len(shown["approved"]), len(shown["rejected"])] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give exactly one of"),
        (("--first", "--advance-from", "1"), "give exactly one of"),
        (("--pcr", f"7={'ab' * 32}"), "would get the key for ever"),
        (("--pcr", "24=ab", "--counter-at-most", "1"), "write NUMBER=HEX"),
        (("--pcr", "7=zz", "--counter-at-most", "1"), "write NUMBER=HEX"),
    ],
)
def test_an_approval_that_says_too_little_is_not_signed(
    arguments: tuple[str, ...], said: str, run: Run, tmp_path: Path
) -> None:
    common = ("policy", "sign", "--key", str(tmp_path / "k"), "--out", str(tmp_path), "--name", "x")
    assert said in run(*common, *arguments, code=2).output


def test_level_software_warns_in_every_status(run: Run, tmp_path: Path) -> None:
    configure(tmp_path, "vault: {level: software}")
    run("seal")
    status = run("status", "--json")
    assert "for development only" in json.loads(status.stdout)["store"]["warnings"][0]
    assert "vault_is_not_protected" in status.stderr
    assert "has no counter" in run("advance", code=1).output


def test_without_a_section_it_says_what_to_add(run: Run, tmp_path: Path) -> None:
    configure(tmp_path, "")
    assert "add `vault: {level: tpm" in run("status", code=4).output


def test_a_level_must_be_chosen(run: Run, tmp_path: Path) -> None:
    configure(tmp_path, "vault: {}")
    assert "level" in run("status", code=4).output


def test_a_fleet_ciphertext_is_made_without_any_configuration(run: Run, tmp_path: Path) -> None:
    plain, _ = plain_release(tmp_path / "plain", {"model.tflite": b"canary weights"})
    key, out = tmp_path / "content.key", tmp_path / "fleet"
    run("encrypt", str(plain), "--key-file", str(key), "--out", str(out))
    assert key.stat().st_mode & 0o777 == 0o600
    sealed = (out / "probe/1.0.0/model.tflite.sealed").read_bytes()
    assert b"canary" not in sealed
    key.write_bytes(bytes(range(32)))  # as `cloud-bridge identity grants key` writes it
    run("encrypt", str(plain), "--key-file", str(key), "--out", str(out / "again"))
    for wrong, why in ((b"no key", "64 hex digits"), (bytes(31), "64 hex digits"), (b"ab" * 16, "holds 16 bytes")):
        key.write_bytes(wrong)
        assert why in run("encrypt", str(plain), "--key-file", str(key), "--out", str(out), code=1).output
