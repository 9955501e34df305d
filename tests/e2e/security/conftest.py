"""A secured site of real processes: swtpm, a broker with mTLS, the bridge with its identity service, one gateway."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.rig import Rig
from tests.e2e.conftest import parts
from tests.e2e.releases import write_releases
from tests.simulators import swtpm
from tests.simulators.mosquitto import BINARY

Secured = Callable[..., Rig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot show, with the package to install."""
    lacking = swtpm.missing() or ("" if BINARY else "mosquitto is not installed: apt-get install mosquitto")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.net)
            if lacking:
                item.add_marker(pytest.mark.skip(reason=lacking))


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    """Make secured rigs whose processes are gone after the test, and whose logs are shown when it fails.

    `models` of the folder is where the gateway finds plain releases.
    """
    rigs: list[Rig] = []
    models = write_releases(tmp_path / "models")

    def make(**overrides: Any) -> Rig:
        sources, pipelines = parts(tmp_path)
        gateway = {"models": {"directories": [str(models)]}, **overrides.pop("gateway", {})}
        rig = Rig(
            tmp_path / f"rig-{len(rigs)}",
            {**sources, **overrides.pop("sources", {})},
            {**pipelines, **overrides.pop("pipelines", {})},
            gateway=gateway,
            **{"security": "tpm", **overrides},
        )
        rigs.append(rig)
        return rig

    try:
        yield make
    finally:
        for rig in rigs:
            rig.kill()
            for child in rig.children:
                print(f"--- {child.name}\n{child.tail(15)}")
