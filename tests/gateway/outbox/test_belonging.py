"""A store whose gateway was given another name."""

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, rows, settings
from tests.simulators.waiting import wait_for


def opened(file: Path, gateway: str | None) -> Outbox:
    return Outbox.open(file, settings(), gateway=gateway)


def filled(file: Path, gateway: str | None, count: int = 5) -> str:
    outbox = opened(file, gateway)
    outbox.put([event(number) for number in range(count)])
    epoch = outbox.epoch
    outbox.close()
    return epoch


def test_records_of_another_name_are_not_delivered_under_this_one(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    epoch = filled(file, "dock-1")
    with pytest.raises(ConfigError, match=r"holds 5 records of gateway 'dock-1'.*set gateway.id back"):
        opened(file, "dock-2")
    again = opened(file, "dock-1")
    assert again.epoch == epoch
    assert len(rows(again, "event")) == 5
    again.close()


def test_control_where_nobody_asks_whose_it_is_it_is_delivered_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    epoch = filled(file, "dock-1")
    outbox = opened(file, None)
    assert (outbox.epoch, len(rows(outbox, "event"))) == (epoch, 5)
    outbox.close()


def test_a_store_of_an_earlier_version_becomes_that_of_who_opens_it(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    epoch = filled(file, None)
    assert filled(file, "dock-1") == epoch
    with pytest.raises(ConfigError, match="'dock-1'"):
        opened(file, "dock-2")


def test_an_empty_store_of_another_name_gives_way_to_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    outbox = opened(file, "dock-1")
    outbox.put([event(1)])
    outbox.acknowledge("event", outbox.epoch, 1)
    wait_for(lambda: not rows(outbox, "event"), seconds=10, what="it is delivered")
    epoch = outbox.epoch
    outbox.close()
    renamed = opened(file, "dock-2")
    assert renamed.epoch != epoch
    renamed.close()
    opened(file, "dock-1").close()  # a slip of the name, noticed at once, is no harm
    renamed = opened(file, "dock-2")
    (receipt,) = renamed.put([event(2)])
    assert receipt.seq == 1
    renamed.close()
    assert filled(file, "dock-2") == receipt.epoch
