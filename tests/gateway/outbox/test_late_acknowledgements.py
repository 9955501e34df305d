"""An acknowledgement may come while the file that it speaks of is being replaced by another."""

import errno
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import OutboxError
from gateway.outbox import store
from gateway.outbox.damage import check_header
from gateway.outbox.faults import DamagedStoreError
from gateway.outbox.opening import replace_store
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from tests.gateway.outbox.outbox_kit import event, numbers, settings, until


def test_an_acknowledgement_of_the_file_before_frees_nothing_in_the_new_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox.open(file, settings())
    outbox.put([event(number) for number in range(1, 6)])
    before = outbox.epoch
    given: list[Receipt] = []

    def while_others_go_on(*arguments: Any) -> Any:
        outbox.acknowledge("event", before, 3)
        outbox.submit([event(number) for number in range(11, 16)], given.extend)
        return replace_store(*arguments)

    monkeypatch.setattr(store, "replace_store", while_others_go_on)
    outbox._mailbox.report(DamagedStoreError("a page cannot be read"))
    until(lambda: len(given) == 5)
    until(lambda: outbox.stats().ignored_acks == 1)
    assert outbox.epoch != before
    assert numbers(outbox, "event") == [1, 2, 3, 4, 5]
    assert {receipt.epoch for receipt in given} == {outbox.epoch}
    outbox.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.EMFILE, OutboxError),
        (errno.ENOMEM, OutboxError),
        (errno.EACCES, OutboxError),
        (errno.EIO, DamagedStoreError),
    ],
)
def test_a_process_that_can_open_no_file_says_nothing_about_the_store(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[OutboxError]
) -> None:
    Outbox.open(file, settings()).close()

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, "no")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutboxError) as caught:
        check_header(file)
    assert type(caught.value) is error
