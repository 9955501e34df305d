"""Fixtures of the outbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def outbox(file: Path) -> Iterator[Outbox]:
    with opened(file) as outbox:
        yield outbox
