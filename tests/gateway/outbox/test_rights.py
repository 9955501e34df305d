"""A store that may not be read is whole: its user gets its rights back, or it waits for its owner."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from gateway.outbox.damage import side
from gateway.outbox.quarantine import quarantined_name
from gateway.outbox.rights import regain
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, numbers, opened, settings

SOMEBODY = 65533
READS_ITS_STORE = """
import os, sys
from pathlib import Path
from gateway.config import Outbox as Settings
from gateway.outbox.store import Outbox
os.setgid({user})
os.setuid({user})
outbox = Outbox.open(Path(sys.argv[1]), Settings(ballast_bytes=0), patient=True)
print("failed" if outbox.failed else outbox.epoch, outbox.stats().failure)
outbox.close()
"""


def epoch_of_a_store(file: Path) -> str:
    with opened(file) as outbox:
        outbox.put([event(1), event(2)])
        return outbox.epoch


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users get to; those of pytest are closed to them."""
    with TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        yield place


def test_a_store_of_its_own_that_may_not_be_read_is_gone_on_with(file: Path) -> None:
    epoch = epoch_of_a_store(file)
    file.chmod(0)
    with capture_logs() as logs, opened(file) as outbox:
        assert outbox.epoch == epoch
        assert numbers(outbox, "event") == [1, 2]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [line["mode"] for line in logs if line["event"] == "store_rights_restored"] == ["0o0"]


def test_a_link_in_the_place_of_its_log_is_not_followed(file: Path, tmp_path: Path) -> None:
    epoch_of_a_store(file)
    other = tmp_path / "other"
    other.touch(mode=0o400)
    side(file, "-wal").unlink(missing_ok=True)
    side(file, "-wal").symlink_to(other)
    regain(file)
    assert stat.S_IMODE(other.stat().st_mode) == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_store_of_another_user_is_left_alone_with_the_remedy(reachable: Path) -> None:
    file = reachable / "state" / "outbox.db"
    epoch = epoch_of_a_store(file)
    for place in (file.parent, *file.parent.iterdir()):
        os.chown(place, SOMEBODY, SOMEBODY)
    os.chown(file, 0, 0)
    words = [sys.executable, "-c", READS_ITS_STORE.format(user=SOMEBODY), str(file)]
    ended = subprocess.run(words, cwd=Path.cwd(), check=False, capture_output=True, text=True, timeout=120)
    assert "failed" in ended.stdout, ended.stderr[-2000:]
    assert "chown --reference" in ended.stdout
    assert not quarantined_name(file).exists()
    outbox = Outbox.open(file, settings())
    assert outbox.epoch == epoch
    outbox.close()
