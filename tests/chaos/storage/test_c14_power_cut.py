"""The power goes at any moment: what was acknowledged is there when it comes back."""

import subprocess
from pathlib import Path

from tests.chaos.experiment import Experiment
from tests.chaos.storage import outbox_oracle
from tests.chaos.storage.campaign import bridge_judge, cut_everywhere, outbox_judge, record
from tests.chaos.storage.conftest import MakeDisk
from tests.chaos.storage.cuts import PAGE, DiskLog, PowerCut, Step, mounted, workplace
from tests.chaos.storage.fusedisk import FLUSH, MARK, WRITE
from tests.chaos.storage.outbox_oracle import Verdict
from tests.chaos.storage.outbox_victim import SETTINGS

OPENS_WITHIN_SECONDS = 2.0


def test_c14_no_power_cut_loses_an_acknowledged_record_of_the_outbox(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    record(
        disk,
        "outbox_victim",
        "state/outbox.db",
        seed=experiment.seed,
        rounds=1200,
        ends=("kill", "kill", "close", "kill"),
    )
    disk.close()
    said = outbox_oracle.promises_of(DiskLog(disk.log).marks())
    assert len(said.receipts) > 4000
    assert min(said.marks.values()) > 0
    outcome = cut_everywhere(experiment, disk, outbox_judge, experiment.scaled(500, 3000))
    assert outcome.clean == outcome.points, outcome.first_fault
    assert outcome.torn_sectors > 0
    assert outcome.slowest_open_seconds < OPENS_WITHIN_SECONDS


def test_c14_control_a_store_that_syncs_only_at_checkpoints_loses(experiment: Experiment, fuse_disk: MakeDisk) -> None:
    disk = fuse_disk()
    record(
        disk, "outbox_victim", "state/outbox.db", "--careless", seed=experiment.seed, rounds=1200, ends=("kill", "kill")
    )
    disk.close()
    outcome = cut_everywhere(experiment, disk, outbox_judge, 200, stop_at_loss=True)
    assert outcome.lost > 0, "synchronous=NORMAL has lost nothing: the experiment sees nothing"


def test_c14_a_second_cut_while_the_store_recovers_from_the_first_loses_nothing(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    record(disk, "outbox_victim", "state/outbox.db", seed=experiment.seed, rounds=600, ends=("kill",))
    disk.close()
    log = DiskLog(disk.log)
    cut = PowerCut(disk.base, log)
    for point in log.points(experiment.random, experiment.scaled(3, 40)):
        left = experiment.directory / "left.img"
        cut.image(point, left, experiment.random)
        said = tuple(log.marks(point))
        again = fuse_disk(base=left)
        record(again, "outbox_victim", "state/outbox.db", seed=experiment.seed + 7, rounds=0, ends=("close",))
        again.close()

        def judge(place: Path, second: DiskLog, at: int, said: tuple[str, ...] = said) -> Verdict:
            # The second life may have acknowledged something, too.
            promises = outbox_oracle.promises_of((*said, *second.marks(at)))
            return outbox_oracle.judge(place / "state/outbox.db", SETTINGS, promises)

        outcome = cut_everywhere(experiment, again, judge, 12)
        assert outcome.clean == outcome.points, f"first cut at {point}, {outcome.first_fault}"


def test_c14_no_power_cut_puts_a_mark_of_the_bridge_ahead_of_its_rows(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk(size_mib=48)
    record(disk, "bridge_victim", "bridge/bridge.db", seed=experiment.seed, rounds=250, ends=("kill", "close", "kill"))
    disk.close()
    outcome = cut_everywhere(experiment, disk, bridge_judge, experiment.scaled(60, 700))
    assert outcome.clean == outcome.points, outcome.first_fault
    assert outcome.slowest_open_seconds < OPENS_WITHIN_SECONDS


def test_c14_control_a_bridge_that_syncs_only_at_checkpoints_loses(experiment: Experiment, fuse_disk: MakeDisk) -> None:
    disk = fuse_disk(size_mib=48)
    record(disk, "bridge_victim", "bridge/bridge.db", "--careless", seed=experiment.seed, rounds=250, ends=("kill",))
    disk.close()
    outcome = cut_everywhere(experiment, disk, bridge_judge, 150, stop_at_loss=True)
    assert outcome.lost > 0, "synchronous=NORMAL has lost nothing: the experiment sees nothing"


def test_c14_the_replayed_disk_holds_what_was_synced_and_may_miss_what_was_not(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    (disk.mountpoint / "synced").write_bytes(b"a" * 10_000)
    subprocess.run(["sync", "-f", str(disk.mountpoint)], check=True)
    disk.mark("synced")
    (disk.mountpoint / "later").write_bytes(b"b" * 10_000)
    disk.close()
    log = DiskLog(disk.log)
    (marked,) = (at for at, step in enumerate(log.steps) if step.kind == MARK)
    kept: list[bool] = []
    for point in (marked + 1, len(log.steps)):  # the second: after the unmounting, which syncs
        with workplace() as place:
            PowerCut(disk.base, log).image(point, place / "one", experiment.random)
            with mounted(place / "one", place / "mounted") as mountpoint:
                assert (mountpoint / "synced").read_bytes() == b"a" * 10_000
                kept.append((mountpoint / "later").exists())
    assert kept == [False, True]


class OneWrite:
    """A disk to which two pages were written at once, and that was not flushed after."""

    def __init__(self) -> None:
        self.steps = [Step(WRITE, 0, 0, 2 * PAGE)]

    def payload(self, _step: Step) -> bytes:
        return b"\xff" * 2 * PAGE


def test_c14_any_page_may_be_torn_but_for_the_first_which_holds_the_superblock(experiment: Experiment) -> None:
    base, image = experiment.directory / "base.img", experiment.directory / "cut.img"
    base.write_bytes(bytes(2 * PAGE))
    firsts, seconds = set[int](), set[int]()
    for _ in range(200):
        PowerCut(base, OneWrite()).image(1, image, experiment.random)
        content = image.read_bytes()
        firsts.add(content[:PAGE].count(0xFF))
        seconds.add(content[PAGE:].count(0xFF))
    assert firsts == {0, PAGE}
    assert len(seconds) > 2


class Rewritten:
    """A disk of zeros where a page becomes ones, is flushed, becomes twos, and ones again, without a flush."""

    def __init__(self) -> None:
        self._pages = [b"\x01" * PAGE, b"", b"\x02" * PAGE, b"\x01" * PAGE]
        kinds = (WRITE, FLUSH, WRITE, WRITE)
        self.steps = [
            Step(kind, 2 * PAGE, at * PAGE, at * PAGE + len(page))
            for at, (kind, page) in enumerate(zip(kinds, self._pages, strict=True))
        ]

    def payload(self, step: Step) -> bytes:
        return self._pages[step.start // PAGE]


def test_c14_disks_of_one_key_hold_the_same_bytes_and_all_where_none_is_lost(experiment: Experiment) -> None:
    base, image = experiment.directory / "base.img", experiment.directory / "cut.img"
    base.write_bytes(bytes(3 * PAGE))
    contents: dict[bytes, set[bytes]] = {}
    for _ in range(200):
        cut = PowerCut(base, Rewritten())
        for point, last in enumerate((1, 1, 2, 1), 1):
            remnant = cut.at(point, experiment.random)
            cut.write(remnant, image)
            content = image.read_bytes()
            assert remnant.lost_sectors or content == bytes(2 * PAGE) + bytes([last]) * PAGE
            contents.setdefault(remnant.key, set()).add(content)
    assert all(len(found) == 1 for found in contents.values())
    assert len(contents) > 20, "it is always the same disk"
    assert len(contents) < 4 * 200, "no disk was seen twice"
