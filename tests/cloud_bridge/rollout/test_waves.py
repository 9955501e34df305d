"""Which devices come when."""

import pytest

from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.releases import Release, release_of
from cloud_bridge.rollout.waves import Wave, jitter, labels_of, members, waves_of

FLEET = {f"gw-{number:02}": {"site": "a" if number < 10 else "b"} for number in range(40)}


def test_waves_are_read_as_people_write_them() -> None:
    assert waves_of("1, 10%, site=a & ring=x, rest") == (
        Wave(count=1),
        Wave(share=0.1),
        Wave(labels={"site": "a", "ring": "x"}),
        Wave(rest=True),
    )
    assert [str(wave) for wave in waves_of("1,2.5%,site=a&ring=x,rest")] == ["1", "2.5%", "site=a&ring=x", "rest"]


@pytest.mark.parametrize(
    "text", ["", "0", "101%", "0%", "-1", "rest, 1", "10%, 5%", "10%, 10%", "Site=a", "site=", "x y"]
)
def test_what_is_no_wave_is_refused(text: str) -> None:
    with pytest.raises(RolloutError):
        waves_of(text)


def test_a_label_is_given_once() -> None:
    with pytest.raises(RolloutError, match="twice"):
        labels_of(["site=a", "site=b"])


def test_the_order_is_the_same_whenever_it_is_asked_and_another_for_each_rollout() -> None:
    once = members(Wave(rest=True), FLEET, (), "one")
    assert once == members(Wave(rest=True), dict(reversed(FLEET.items())), (), "one")
    assert once != members(Wave(rest=True), FLEET, (), "two")
    assert sorted(once) == sorted(FLEET)


def test_a_share_counts_the_devices_of_earlier_waves() -> None:
    first = members(Wave(count=1), FLEET, (), "x")
    second = members(Wave(share=0.1), FLEET, first, "x")
    assert len(second) == 3
    third = members(Wave(labels={"site": "a"}), FLEET, {*first, *second}, "x")
    rest = members(Wave(rest=True), FLEET, {*first, *second, *third}, "x")
    assert sorted([*first, *second, *third, *rest]) == sorted(FLEET)


def test_canaries_come_first() -> None:
    fleet = FLEET | {"gw-33": {"ring": "canary"}}
    assert members(Wave(count=1), fleet, (), "any") == ["gw-33"]


def test_devices_of_a_wave_are_told_at_different_times() -> None:
    times = [jitter("x", name) for name in FLEET]
    assert len(set(times)) == len(FLEET)
    assert all(0 <= at < 1 for at in times)
    assert max(times) - min(times) > 0.7


def test_a_release_is_a_name_and_a_version() -> None:
    assert release_of("detector@1.2.3-rc.1") == Release("detector", "1.2.3-rc.1")
    for text in ("detector", "detector@1", "Detector@1.2.3", "detector@1.2.3\n"):
        with pytest.raises(RolloutError, match="NAME@VERSION"):
            release_of(text)
