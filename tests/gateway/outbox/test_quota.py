"""Which rows must go, and who must wait."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.config import ClassQuota
from gateway.outbox.quota import Amount, Held, admit, overflow, page_quota, quotas_of
from gateway.wire.messages import CLASSES, RecordClass
from tests.gateway.outbox.outbox_kit import settings

MIB = 1024 * 1024
QUOTA = ClassQuota(max_rows=100, max_bytes=100_000)


@dataclass(frozen=True)
class Ask:
    name: str
    amounts: Mapping[RecordClass, Amount]


def held(rows: int = 0, disk_bytes: int = 0) -> Held:
    return Held(rows, disk_bytes, 1, rows, 0)


def test_what_fits_needs_nothing() -> None:
    assert overflow(QUOTA, held(90, 50_000), Amount(10, 50_000)) is None


def test_a_class_over_its_rows_frees_some_more_than_it_must() -> None:
    need = overflow(QUOTA, held(100, 1000), Amount(1, 10))
    assert need is not None
    assert (need.must, need.wish, need.reason) == (Amount(1, 0), Amount(3, 0), "rows")


def test_a_class_over_its_bytes_frees_bytes() -> None:
    need = overflow(QUOTA, held(10, 99_000), Amount(1, 2000))
    assert need is not None
    assert (need.must, need.wish, need.reason) == (Amount(0, 1000), Amount(0, 3000), "bytes")


def test_a_quota_that_was_lowered_is_reached_step_by_step() -> None:
    need = overflow(QUOTA, held(100_000, 100_000_000), Amount(5, 500))
    assert need is not None
    assert need.must == Amount(5, 500)


def test_one_transaction_never_brings_more_than_the_class_may_hold() -> None:
    asks = [Ask(str(n), {"bulk": Amount(60, 10)}) for n in range(3)]
    quotas = dict.fromkeys(CLASSES, QUOTA)
    admission = admit(quotas, {name: held() for name in CLASSES}, asks, frozenset())
    assert [ask.name for ask in admission.accepted] == ["0"]
    assert [ask.name for ask in admission.deferred] == ["1", "2"]


def test_a_full_class_blocks_what_is_behind_it_and_lets_others_pass() -> None:
    quotas = dict.fromkeys(CLASSES, QUOTA) | {"critical": ClassQuota(max_rows=10, on_full="refuse")}
    asks = [
        Ask("fits", {"critical": Amount(1, 10)}),
        Ask("does not", {"critical": Amount(2, 10), "event": Amount(1, 10)}),
        Ask("would, but is behind", {"critical": Amount(1, 10)}),
        Ask("shares a class with the second", {"event": Amount(1, 10)}),
        Ask("other", {"bulk": Amount(1, 10)}),
    ]
    admission = admit(quotas, {name: held(8) for name in CLASSES}, asks, frozenset())
    assert [ask.name for ask in admission.accepted] == ["fits", "other"]
    assert [ask.name for ask in admission.refused] == [asks[1].name, asks[2].name, asks[3].name]


def test_a_class_that_is_not_configured_has_its_default() -> None:
    few = settings()
    del few.classes["bulk"]
    assert quotas_of(few)["bulk"].max_rows == 100_000


def test_the_page_quota_covers_all_classes() -> None:
    assert page_quota(quotas_of(settings())) * 4096 > 64 * MIB
    assert page_quota(quotas_of(settings())) * 4096 < 64 * MIB * 1.06 + 2 * MIB
