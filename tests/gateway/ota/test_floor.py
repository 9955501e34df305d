"""The floor of updates: what a file can forget, and what a counter beside it makes of that."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.ota.errors import FloorCounterError, FloorEditedError, FloorError, FloorRestoredError
from gateway.ota.floor import Floor
from gateway.ota.floor_file import FILE, Held
from gateway.ota.trust import Floors
from gateway.vault.errors import KeyStoreError, KeyStoreUnavailableError, WrongKeyError
from gateway.vault.policy import FLOOR_COUNTER_INDEX
from tests.simulators.floor_counter import CounterSimulator, PowerCut

NEW = Floors(root=1, timestamp=7, snapshot=3, targets=3, keys="a", fresh_ns=5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ota" / FILE


@pytest.fixture
def counter() -> CounterSimulator:
    return CounterSimulator(highest=10)


def test_without_a_tpm_the_file_counts_and_an_older_copy_is_believed(file: Path) -> None:
    """The control of everything below: this is what the counter is for."""
    Floor(file).raise_to(NEW, fencing_token=1)
    old = file.read_bytes()
    Floor(file).raise_to(fencing_token=2)
    file.write_bytes(old)
    floor = Floor(file)
    assert floor.read().fencing_token == 1
    assert (floor.status.place, floor.status.counter_index) == ("file", None)
    assert "no TPM" in floor.status.problem
    file.write_text(json.dumps(json.loads(old) | {"fencing_token": 0, "targets": 0}))
    assert Floor(file).read().targets == 0


def test_with_a_counter_an_older_copy_is_refused(file: Path, counter: CounterSimulator) -> None:
    Floor(file, counter.anchor).raise_to(NEW, fencing_token=1)
    old = file.read_bytes()
    Floor(file, counter.anchor).raise_to(fencing_token=2)
    newest = file.read_bytes()
    file.write_bytes(old)
    floor = Floor(file, counter.anchor)
    for ask in (floor.read, floor.require, lambda: floor.raise_to(fencing_token=9)):
        with pytest.raises(FloorRestoredError, match=r"number 13, the counter in the TPM is 14.*until the bridge"):
            ask()
    assert (floor.status.place, floor.status.code) == ("refused", "floor-restored")
    file.write_bytes(newest)  # what was there before counts again
    assert floor.read() == Held.of(NEW, 2)
    assert floor.status.counter_index == FLOOR_COUNTER_INDEX
    assert (floor.status.place, floor.status.number, floor.refusal) == ("tpm", 14, None)


def test_a_program_that_runs_notices_a_copy_that_was_put_in_place_meanwhile(
    file: Path, counter: CounterSimulator
) -> None:
    floor = Floor(file, counter.anchor)
    floor.raise_to(NEW)
    old = file.read_bytes()
    floor.raise_to(fencing_token=5)
    file.write_bytes(old)
    with pytest.raises(FloorRestoredError):
        floor.read()


@pytest.mark.parametrize(
    "edit",
    [
        {"fencing_token": 1},
        {"targets": 1},
        {"timestamp": 1},
        {"number": 99},
        {"keys": "b"},
        {"fresh_ns": 0},
        {"mac": "00"},
        {"mac": "ü"},
    ],
    ids=str,
)
def test_an_edited_file_is_refused(file: Path, counter: CounterSimulator, edit: dict[str, object]) -> None:
    Floor(file, counter.anchor).raise_to(NEW, fencing_token=4)
    document = json.loads(file.read_bytes())
    file.write_text(json.dumps(document))
    assert Floor(file, counter.anchor).read().fencing_token == 4  # control: written otherwise, it says the same
    file.write_text(json.dumps(document | edit))
    with pytest.raises(FloorEditedError):
        Floor(file, counter.anchor).read()


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda file: file.write_bytes(b"\0" * 50),
        lambda file: file.write_text("{}"),
        lambda file: file.write_text('{"number": 1' + "0" * 30 + "}"),
        lambda file: file.write_text('{"x": ' + "[" * 100_000),
    ],
    ids=["gone", "zeroes", "unbound", "a huge number", "a deep one"],
)
def test_a_file_that_is_gone_damaged_or_unbound_is_refused_once_there_is_a_counter(
    file: Path, counter: CounterSimulator, change: Callable[[Path], object]
) -> None:
    Floor(file, counter.anchor).raise_to(NEW)
    change(file)
    with pytest.raises(FloorRestoredError, match=r"older state|removed"):
        Floor(file, counter.anchor).read()


def test_removing_the_counter_does_not_make_an_older_file_good(file: Path, counter: CounterSimulator) -> None:
    floor = Floor(file, counter.anchor)
    copies = []
    for token in range(1, 4):
        floor.raise_to(NEW, fencing_token=token)
        copies.append(file.read_bytes())
    for copy in copies:
        counter.remove()
        file.write_bytes(copy)
        with pytest.raises(FloorRestoredError):
            Floor(file, counter.anchor).read()


def test_a_copy_from_another_device_or_vault_is_refused(file: Path, counter: CounterSimulator) -> None:
    Floor(file, counter.anchor).raise_to(NEW)
    counter.keys.append(b"x" * 32)  # as after `gateway vault init --anew`
    with pytest.raises(FloorEditedError):
        Floor(file, counter.anchor).read()


def test_only_what_lists_something_new_moves_the_counter(file: Path, counter: CounterSimulator) -> None:
    floor = Floor(file, counter.anchor)
    floor.raise_to(NEW, fencing_token=1)
    moved = counter.counted
    for number in range(100):
        later = {"timestamp": 8 + number, "snapshot": 4 + number, "fresh_ns": 10**9 * number}
        floor.raise_to(msgspec.structs.replace(NEW, **later))
        floor.raise_to(fencing_token=1)
        floor.read()
    assert counter.counted == moved
    assert Floor(file, counter.anchor).read().timestamp == 107
    for higher in ({"root": 2}, {"targets": 4}):
        floor.raise_to(msgspec.structs.replace(floor.read().floors, **higher))
    floor.raise_to(fencing_token=2)
    assert counter.counted == moved + 3


def test_what_was_never_bound_is_adopted_once_and_told(file: Path, counter: CounterSimulator) -> None:
    Floor(file).raise_to(NEW, fencing_token=3)
    old = file.read_bytes()
    floor = Floor(file, counter.anchor)
    assert floor.read() == Held.of(NEW, 3)
    assert (floor.status.place, floor.was_adopted) == ("tpm", True)
    assert not Floor(file.with_name("fresh") / FILE, CounterSimulator().anchor).was_adopted
    file.write_bytes(old)
    with pytest.raises(FloorRestoredError, match="is not bound to the TPM"):
        Floor(file, counter.anchor).read()


def test_a_file_of_the_program_before_is_read(file: Path, counter: CounterSimulator) -> None:
    file.parent.mkdir()
    file.write_bytes(msgspec.json.encode(NEW))
    assert Floor(file, counter.anchor).read() == Held.of(NEW, 0)
    assert msgspec.json.decode(file.read_bytes(), type=Floors) == NEW  # and the program before reads the new one


@pytest.mark.parametrize("step_at_begin", [1, 7])
@pytest.mark.parametrize("bound", [False, True])
def test_a_power_cut_anywhere_leaves_the_old_or_the_new_floor(file: Path, bound: bool, step_at_begin: int) -> None:
    for after in range(50):
        file.unlink(missing_ok=True)
        counter = CounterSimulator(highest=10, step_at_begin=step_at_begin)
        Floor(file, counter.anchor if bound else None).raise_to(NEW, fencing_token=1)
        counter.cut_after = after
        try:
            Floor(file, counter.anchor).raise_to(fencing_token=2)
            break
        except PowerCut:
            pass
        counter.cut_after = None
        floor = Floor(file, counter.anchor)
        if not bound and step_at_begin != 1:  # where it began elsewhere than forecast, the bridge must set it anew
            try:
                floor.read()
            except FloorRestoredError:
                floor.establish(Held.of(NEW, 2))
        assert floor.read().fencing_token in (1, 2)
        assert floor.raise_to(fencing_token=2).fencing_token == 2
        assert Floor(file, counter.anchor).read().fencing_token == 2
    assert after > 4


def test_while_the_tpm_is_away_the_file_counts_and_is_not_changed(file: Path, counter: CounterSimulator) -> None:
    Floor(file, counter.anchor).raise_to(NEW, fencing_token=1)
    bound = file.read_bytes()
    counter.answers_not()
    floor = Floor(file, counter.anchor)
    assert floor.read().fencing_token == 1
    assert (floor.status.place, floor.status.problem) == ("file", "the TPM does not answer")
    assert floor.raise_to(fencing_token=2).fencing_token == 2
    assert file.read_bytes() == bound
    counter.failing = None
    assert floor.raise_to(fencing_token=2).fencing_token == 2
    assert floor.status.place == "tpm"
    assert Floor(file, counter.anchor).read().fencing_token == 2


def test_a_tpm_that_goes_away_does_not_make_a_refused_state_good(file: Path, counter: CounterSimulator) -> None:
    floor = Floor(file, counter.anchor)
    floor.raise_to(NEW)
    old = file.read_bytes()
    floor.raise_to(fencing_token=1)
    file.write_bytes(old)
    with pytest.raises(FloorRestoredError):
        floor.read()
    counter.answers_not()
    with pytest.raises(FloorError):
        floor.read()
    # Control: a program that starts now has only the file; it is refused again as soon as the TPM answers.
    started = Floor(file, counter.anchor)
    assert started.read().fencing_token == 0
    counter.failing = None
    with pytest.raises(FloorRestoredError):
        started.read()


def test_a_counter_that_cannot_be_used_is_no_way_around_it(file: Path, counter: CounterSimulator) -> None:
    class Strange(CounterSimulator):
        def floor_count(self) -> int | None:
            raise KeyStoreError("the NV index 0x18051cf belongs to another program")

    strange = Strange()
    Floor(file, counter.anchor).raise_to(NEW)
    with pytest.raises(FloorCounterError, match="belongs to another program"):
        Floor(file, strange.anchor).read()
    file.unlink()  # where nothing was bound yet, it is a file and the status says why
    floor = Floor(file, strange.anchor)
    floor.read()
    assert "belongs to another program" in floor.status.problem


def test_a_damaged_key_is_no_tpm_that_is_away(file: Path, counter: CounterSimulator) -> None:
    Floor(file, counter.anchor).raise_to(NEW)
    counter.failing = WrongKeyError("floor.key was changed")
    with pytest.raises(FloorEditedError, match=r"floor\.key was changed"):
        Floor(file, counter.anchor).read()
    counter.failing = KeyStoreUnavailableError("no answer")  # control
    Floor(file, counter.anchor).read()


def test_what_is_certain_of_a_refused_floor_is_what_an_authentic_file_says(
    file: Path, counter: CounterSimulator
) -> None:
    floor = Floor(file, counter.anchor)
    floor.raise_to(NEW, fencing_token=1)
    old = file.read_bytes()
    floor.raise_to(fencing_token=2)
    file.write_bytes(old)
    assert floor.lower_bound() == Held.of(NEW, 1)
    file.write_text(json.dumps(json.loads(old) | {"targets": 999}))
    assert floor.lower_bound() == Held()


def test_after_the_bridge_has_set_it_anew_no_older_copy_is_ever_good(file: Path, counter: CounterSimulator) -> None:
    floor = Floor(file, counter.anchor)
    copies = []
    for token in range(1, 4):
        floor.raise_to(NEW, fencing_token=token)
        copies.append(file.read_bytes())
    file.write_bytes(copies[0])
    with pytest.raises(FloorRestoredError):
        floor.read()
    floor.establish(Held.of(NEW, 9))
    assert (floor.read().fencing_token, floor.refusal) == (9, None)
    anew = file.read_bytes()
    for copy in copies:
        file.write_bytes(copy)
        with pytest.raises(FloorError):
            Floor(file, counter.anchor).read()
    file.write_bytes(anew)
    assert Floor(file, counter.anchor).read().fencing_token == 9


def test_who_is_never_attested_is_not_told_to_wait_for_that(file: Path, counter: CounterSimulator) -> None:
    Floor(file, counter.anchor).raise_to(NEW, fencing_token=1)
    old = file.read_bytes()
    Floor(file, counter.anchor).raise_to(fencing_token=2)
    file.write_bytes(old)
    for has_identity, words in ((True, "has attested this device and sent its twin"), (False, "has sent its twin")):
        floor = Floor(file, counter.anchor, has_identity=has_identity)
        with pytest.raises(FloorRestoredError, match=f"until the bridge {words} and fresh metadata"):
            floor.read()
        assert f"until the bridge {words}" in floor.look().problem


def test_who_only_looks_changes_nothing_and_is_told_the_same(file: Path, counter: CounterSimulator) -> None:
    assert (Floor(file).look().place, Floor(file, counter.anchor).look().place) == ("file", "file")
    assert not file.parent.exists()
    assert counter.value is None
    Floor(file, counter.anchor).raise_to(NEW, fencing_token=1)
    old = file.read_bytes()
    Floor(file, counter.anchor).raise_to(fencing_token=2)
    said = Floor(file, counter.anchor).look()
    assert (said.place, said.number) == ("tpm", counter.value)
    file.write_bytes(old)
    kept = [*file.parent.iterdir()]
    said = Floor(file, counter.anchor).look()
    assert (said.place, said.code) == ("refused", "floor-restored")
    file.unlink()
    assert Floor(file, counter.anchor).look().place == "refused"
    counter.answers_not()
    assert "does not answer" in Floor(file, counter.anchor).look().problem
    assert [each for each in kept if each != file] == [*file.parent.iterdir()]


def test_two_programs_raise_it_in_turn(file: Path, counter: CounterSimulator) -> None:
    one, other = Floor(file, counter.anchor), Floor(file, counter.anchor)
    for token in range(1, 20, 2):
        one.raise_to(fencing_token=token)
        other.raise_to(fencing_token=token + 1)
    assert one.read().fencing_token == other.read().fencing_token == 20


@pytest.mark.parametrize("bound", [False, True])
def test_a_token_beyond_belief_is_forgotten_and_all_else_stays(
    file: Path, counter: CounterSimulator, *, bound: bool
) -> None:
    anchor = counter.anchor if bound else None
    Floor(file, anchor).raise_to(NEW, fencing_token=2**63 - 1)
    assert Floor(file, anchor).raise_to(fencing_token=9).fencing_token == 2**63 - 1  # control: a floor only rises
    assert Floor(file, anchor).raise_to(fencing_token=9, most_token=100) == Held.of(NEW, 9)
    assert Floor(file, anchor).read() == Held.of(NEW, 9)
    assert Floor(file, anchor).raise_to(fencing_token=4, most_token=100).fencing_token == 9
