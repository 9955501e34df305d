"""A registry that is begun."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud_bridge.registry.kit import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A registry in a directory, empty."""
    site = Site(tmp_path).begin()
    yield site
    site.db.close()
