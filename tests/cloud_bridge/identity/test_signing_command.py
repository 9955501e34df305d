"""A program that signs: what it is asked, what it may do wrong, and that it cannot take more than its share."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from cloud_bridge.identity.errors import AuthorityError
from cloud_bridge.identity.issuer import CertificateRequest, life_from, new_key
from cloud_bridge.identity.signing_command import MAX_OUTPUT_BYTES, CommandSigner
from tests.simulators.attested_device import csr_of
from tests.simulators.waiting import wait_for

NOW = datetime(2026, 9, 21, 12, tzinfo=UTC)
ID = "spiffe://sluice.test/gateway/dock-7"


def request() -> CertificateRequest:
    key = new_key()
    life = life_from(NOW, seconds=3600, backdate_seconds=120)
    return CertificateRequest("dock-7", ID, csr_of(key, "dock-7"), key.public_key(), life)


@pytest.fixture
def signer(tmp_path: Path) -> Callable[..., CommandSigner]:
    def make(script: str, seconds: float = 20.0) -> CommandSigner:
        file = tmp_path / "signs"
        file.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        file.chmod(0o755)
        return CommandSigner([str(file), "a word"], seconds, clock=lambda: int(NOW.timestamp()) * 10**9)

    return make


def test_the_program_gets_the_request_with_all_names_and_times(
    signer: Callable[..., CommandSigner], tmp_path: Path
) -> None:
    asked = request()
    assert signer('cat > asked; printf "%s" "$1"').sign(asked) == b"a word"
    question = json.loads((tmp_path / "asked").read_bytes())
    csr = question.pop("csr").encode()
    assert x509.load_pem_x509_csr(csr).public_key() == asked.key
    assert question == {
        "version": 1,
        "gateway": "dock-7",
        "common_name": "dock-7",
        "spiffe_id": ID,
        "not_before": "2026-09-21T11:58:00.000Z",
        "not_after": "2026-09-21T13:00:00.000Z",
        "seconds": 3600,
    }


def test_a_program_that_does_not_read_its_question_is_heard_all_the_same(signer: Callable[..., CommandSigner]) -> None:
    assert signer("exec <&-; echo chain").sign(request()) == b"chain\n"


def test_a_failure_is_told_with_its_last_words(signer: Callable[..., CommandSigner]) -> None:
    with pytest.raises(AuthorityError, match="exit status 3: noise / the vault is sealed") as caught:
        signer("echo noise >&2; echo 'the vault is sealed' >&2; exit 3").sign(request())
    assert caught.value.fault == "failed"
    with pytest.raises(AuthorityError, match="signal 9: it said nothing"):
        signer("kill -9 $$").sign(request())
    with pytest.raises(AuthorityError, match=r"No such file.*identity\.issuer\.command"):
        CommandSigner(["/nowhere/at-all"], 5.0).sign(request())


def test_words_that_would_write_on_the_operators_terminal_are_made_harmless(
    signer: Callable[..., CommandSigner],
) -> None:
    with pytest.raises(AuthorityError) as caught:
        signer(r"printf 'a\033[2Jb' >&2; exit 1").sign(request())
    assert str(caught.value).endswith("a [2Jb")


def test_a_program_that_hangs_is_ended_at_the_deadline_with_all_it_has_started(
    signer: Callable[..., CommandSigner], tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(AuthorityError, match="within") as caught:
        signer("sleep 300 & echo $! > child; wait", seconds=0.5).sign(request())
    assert time.monotonic() - started < 10
    assert caught.value.fault == "away"
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not _runs(child), what="the child of the program has ended")


def test_control_without_the_deadline_it_would_be_waited_for(signer: Callable[..., CommandSigner]) -> None:
    started = time.monotonic()
    assert signer("sleep 1; echo late", seconds=20).sign(request()) == b"late\n"
    assert time.monotonic() - started >= 1
    with pytest.raises(AuthorityError, match="within"):
        signer("sleep 1; echo late", seconds=0.2).sign(request())


def test_a_program_that_closes_its_pipes_and_stays_is_ended_too(signer: Callable[..., CommandSigner]) -> None:
    with pytest.raises(AuthorityError, match="within"):
        signer("exec <&- >&- 2>&-; sleep 300", seconds=0.5).sign(request())


@pytest.mark.parametrize("where", ["", ">&2"])
def test_a_program_that_writes_without_end_is_ended_at_the_limit(
    signer: Callable[..., CommandSigner], where: str
) -> None:
    with pytest.raises(AuthorityError, match=f"more than {MAX_OUTPUT_BYTES} bytes"):
        signer(f"yes {where}").sign(request())


def test_as_much_as_the_limit_is_taken(signer: Callable[..., CommandSigner]) -> None:
    assert len(signer(f"head -c {MAX_OUTPUT_BYTES} /dev/zero").sign(request())) == MAX_OUTPUT_BYTES


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
