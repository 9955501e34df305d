import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gateway.config import CameraSource, ReplaySource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.base import ClosableSource, Source, open_source
from gateway.sources.capture import Backoff, CaptureThread, SourceState
from gateway.sources.fresh import FreshnessGuard, guard_for
from gateway.sources.slot import Handoff
from gateway.sources.still import StillnessWatch
from gateway.values import Capture, Frame, SampleBlock
from tests.simulators.camera import MjpegCamera
from tests.simulators.clips import picture, write_video
from tests.simulators.waiting import wait_for

AT_ONCE = Backoff(first_seconds=0.001, cap_seconds=0.01)


class Scripted(ClosableSource):
    """A source that plays a script: numbers are pictures, errors are raised, and then it waits or ends."""

    def __init__(self, script: list[int | Exception], *, ends: bool = False) -> None:
        super().__init__("dock")
        self._script = script
        self._ends = ends

    def captures(self) -> Iterator[Capture]:
        for sequence, step in enumerate(self._script, start=1):
            if isinstance(step, Exception):
                self._drops.count("torn")
                raise step
            yield Frame("dock", sequence, time.time_ns(), time.monotonic_ns(), picture(step, width=32, height=24))
        if not self._ends:
            self._closing.wait()


class Recorder:
    """Runs a capture thread and keeps all it tells."""

    def __init__(self, open: Callable[[], Source], **options: object) -> None:  # noqa: A002
        self.captures: list[Capture] = []
        self.states: list[SourceState] = []
        options = {"backoff": AT_ONCE, "chance": lambda: 1.0} | options
        self.thread = CaptureThread("dock", open, self.captures.append, self.states.append, **options)  # type: ignore[arg-type]

    def __enter__(self) -> "Recorder":
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        assert self.thread.stop(5)

    @property
    def story(self) -> list[str]:
        return [state.state for state in self.states]

    @property
    def sequences(self) -> list[int]:
        return [capture.sequence for capture in self.captures if isinstance(capture, Frame)]


def in_turn(*sources: Source) -> Callable[[], Source]:
    remaining = list(sources)
    return lambda: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def test_a_lost_source_is_opened_again_and_its_numbers_go_on() -> None:
    first = Scripted([1, 2, SourceLostError("cable")])
    with Recorder(in_turn(first, Scripted([SourceLostError("cable")]), Scripted([3, 4]))) as recorder:
        wait_for(lambda: len(recorder.captures) == 4)
    assert recorder.sequences == [1, 2, 3, 4]
    assert recorder.story == ["opening", "streaming", "lost", "streaming"]
    assert recorder.states[2].error == "cable"
    assert recorder.thread.state.reopens == 2
    assert recorder.thread.drops == {"torn": 2}


def test_a_finished_recording_ends_and_is_not_opened_again() -> None:
    opened = []

    def open_once() -> Source:
        opened.append(1)
        return Scripted([1, 2], ends=True)

    with Recorder(open_once) as recorder:
        assert recorder.thread.join(5)
    assert recorder.story == ["opening", "streaming", "ended"]
    assert len(opened) == 1


@pytest.mark.parametrize("error", [ConfigError("no password file"), RuntimeError("driver bug")])
def test_any_failure_to_open_is_told_and_tried_again(error: Exception) -> None:
    attempts = []

    def open_later() -> Source:
        attempts.append(1)
        if len(attempts) < 4:
            raise error
        return Scripted([1])

    with Recorder(open_later) as recorder:
        wait_for(lambda: recorder.captures)
    assert recorder.story == ["opening", "lost", "streaming"]
    assert str(error) in recorder.states[1].error


def test_a_source_that_hangs_in_its_device_does_not_hold_up_the_stop_for_long() -> None:
    release = threading.Event()

    class Hanging(ClosableSource):
        def captures(self) -> Iterator[Capture]:
            release.wait(20)
            yield from ()

    recorder = Recorder(lambda: Hanging("dock"))
    recorder.thread.start()
    begin = time.monotonic()
    assert not recorder.thread.stop(0.2)
    assert time.monotonic() - begin < 2
    release.set()
    assert recorder.thread.join(5)
    assert recorder.story == ["opening"]


def test_a_frozen_picture_is_told_once_and_never_handed_on_again() -> None:
    guard = FreshnessGuard(frozen_after_seconds=0.0)
    with Recorder(lambda: Scripted([1, 2, 2, 2, 2, 3]), guard=guard) as recorder:
        wait_for(lambda: len(recorder.captures) == 3)
        assert recorder.story == ["opening", "streaming", "frozen", "streaming"]
    assert recorder.sequences == [1, 2, 6]
    assert recorder.thread.drops == {"frozen": 3}
    assert "same picture" in recorder.states[2].error


def test_without_the_guard_a_frozen_picture_would_be_handed_on_again_and_again() -> None:
    with Recorder(lambda: Scripted([1, 2, 2, 2, 2, 3])) as recorder:
        wait_for(lambda: len(recorder.captures) == 6)
    assert recorder.story == ["opening", "streaming"]


def test_a_camera_that_stays_frozen_is_opened_again_and_stays_frozen_if_that_does_not_help() -> None:
    guard = FreshnessGuard(frozen_after_seconds=0.0)
    sources = in_turn(Scripted([1, 1, 1]), Scripted([1, 2]))
    with Recorder(sources, guard=guard, reopen_frozen_after_seconds=0.0) as recorder:
        wait_for(lambda: recorder.thread.state.reopens >= 2)
        assert recorder.sequences == [1]
        assert set(recorder.story[2:]) <= {"frozen", "lost"}


def test_stopping_before_starting_and_twice_does_no_harm() -> None:
    recorder = Recorder(lambda: Scripted([1]))
    assert recorder.thread.stop()
    assert recorder.thread.stop()


def test_a_blocked_delivery_ends_when_the_hand_off_is_closed(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=20)
    queue: Handoff[Capture] = Handoff(2)
    thread = CaptureThread(
        "dock",
        lambda: open_source("dock", ReplaySource(file=clip, speed="max", loop=True)),
        queue.put,
        lambda _state: None,
    )
    thread.start()
    wait_for(lambda: len(queue) == 2)
    queue.close()
    assert thread.stop()


def test_waits_double_up_to_a_cap_and_are_spread_over_their_whole_length() -> None:
    backoff = Backoff()
    assert [backoff.seconds(failures, 1.0) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert backoff.seconds(10_000, 1.0) == 8
    assert backoff.seconds(5, 0.25) == 2


def streamed_since(recorder: Recorder, count: int) -> bool:
    return recorder.thread.state.state == "streaming" and len(recorder.captures) > count


def camera_recorder(camera: MjpegCamera, *, guarded: bool = True, **settings: float) -> Recorder:
    configured = CameraSource(device=camera.url, timeout_seconds=1.0, **settings)  # type: ignore[arg-type]
    return Recorder(
        lambda: open_source("dock", configured),
        guard=guard_for(configured) if guarded else None,
        backoff=Backoff(),
    )


def test_a_camera_streams_again_within_ten_seconds_of_a_cut_and_of_its_return() -> None:
    camera = MjpegCamera()
    with camera_recorder(camera) as recorder:
        wait_for(lambda: len(recorder.captures) > 3)
        count = len(recorder.captures)
        camera.disconnect()
        wait_for(lambda: "lost" in recorder.story)
        wait_for(lambda: streamed_since(recorder, count), seconds=10)
        camera.unplug()
        wait_for(lambda: recorder.thread.state.state == "lost")
        wait_for(lambda: recorder.thread.state.reopens >= 3, seconds=20)
        count = len(recorder.captures)
        camera.plug()
        wait_for(lambda: streamed_since(recorder, count), seconds=10)
        assert recorder.sequences == sorted(set(recorder.sequences))
    camera.unplug()


def test_a_camera_that_says_nothing_any_more_is_lost_and_comes_back() -> None:
    camera = MjpegCamera()
    with camera_recorder(camera) as recorder:
        wait_for(lambda: len(recorder.captures) > 3)
        camera.knobs.silent = True
        wait_for(lambda: recorder.thread.state.state == "lost")
        assert f"camera {camera.url}" in recorder.thread.state.error
        camera.knobs.silent = False
        count = len(recorder.captures)
        wait_for(lambda: streamed_since(recorder, count), seconds=10)
    camera.unplug()


@pytest.mark.parametrize("guarded", [True, False])
def test_a_frozen_camera_is_never_reported_fresh_unless_the_guard_is_off(guarded: bool) -> None:
    camera = MjpegCamera()
    with camera_recorder(camera, guarded=guarded, frozen_after_seconds=0.5) as recorder:
        wait_for(lambda: len(recorder.captures) > 3)
        camera.knobs.frozen = True
        sent = camera.sent
        wait_for(lambda: camera.sent > sent + 25)
        images = [capture.image for capture in recorder.captures if isinstance(capture, Frame)]
        reported_twice = any(np.array_equal(before, after) for before, after in pairwise(images))
        assert reported_twice is not guarded
        assert (recorder.thread.state.state == "frozen") is guarded
        camera.knobs.frozen = False
        count = len(recorder.captures)
        wait_for(lambda: streamed_since(recorder, count), seconds=10)
    camera.unplug()


def test_the_pictures_a_second_are_limited_and_the_rest_is_counted() -> None:
    camera = MjpegCamera(fps=50)
    with camera_recorder(camera, fps=5) as recorder:
        wait_for(lambda: len(recorder.captures) >= 10, seconds=10)
        first, last = recorder.captures[0], recorder.captures[-1]
        rate = (len(recorder.captures) - 1) * 1e9 / (last.received_ns - first.received_ns)
        assert 3 < rate < 6
        assert recorder.thread.drops["rate_limited"] > 20
    camera.unplug()


class Samples(ClosableSource):
    """A sensor that gives one value after the other, a second apart, and then waits."""

    def __init__(self, values: list[float]) -> None:
        super().__init__("motor")
        self._values = values

    def captures(self) -> Iterator[Capture]:
        for second, value in enumerate(self._values):
            yield SampleBlock("motor", second, second * 1_000_000_000, 1.0, np.array([[value]], np.float32))
        self._closing.wait()


def test_a_sensor_that_stands_still_is_frozen_until_it_moves_and_its_values_are_handed_on() -> None:
    values = [1.0, 2.0, *[3.0] * 8, 4.0, 5.0]
    with Recorder(lambda: Samples(values), watch=StillnessWatch(5.0)) as run:
        wait_for(lambda: len(run.captures) == len(values))
    assert run.story == ["opening", "streaming", "frozen", "streaming"]
    assert "channel 0" in run.states[2].error


def test_without_the_watch_the_same_sensor_seems_well() -> None:
    values = [1.0, 2.0, *[3.0] * 8, 4.0, 5.0]
    with Recorder(lambda: Samples(values)) as run:
        wait_for(lambda: len(run.captures) == len(values))
    assert run.story == ["opening", "streaming"]


class Plug:
    """A device that may be there or not."""

    def __init__(self, *, there: bool) -> None:
        self.there = there
        self.opened = 0

    def open(self) -> Source:
        self.opened += 1
        return Scripted([self.opened] if self.there else [SourceLostError("is not there")])


def test_a_device_that_is_not_there_is_not_opened_in_vain_and_at_once_when_it_comes() -> None:
    plug = Plug(there=False)
    with Recorder(plug.open, there=lambda: plug.there) as recorder:
        wait_for(lambda: recorder.thread.absent)
        recorder.thread.look_again()  # something else was plugged in
        time.sleep(0.1)  # a hundred openings, with these waits
        assert plug.opened == 1
        plug.there = True
        began = time.monotonic()
        recorder.thread.look_again()
        wait_for(lambda: recorder.captures)
        assert time.monotonic() - began < 0.5
    assert recorder.story == ["opening", "lost", "streaming"]
    assert plug.opened == 2


def test_where_nobody_can_tell_whether_it_is_there_it_is_opened_again_and_again() -> None:
    plug = Plug(there=False)
    with Recorder(plug.open):
        wait_for(lambda: plug.opened > 20)


def test_a_device_that_comes_is_found_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sources.capture.LOOK_EVERY_SECONDS", 0.02)
    plug = Plug(there=False)
    with Recorder(plug.open, there=lambda: plug.there) as recorder:
        wait_for(lambda: recorder.thread.absent)
        plug.there = True
        wait_for(lambda: recorder.captures)


def test_a_device_that_is_pulled_out_is_lost_at_once_and_goes_on_when_it_is_back() -> None:
    plug = Plug(there=True)
    with Recorder(plug.open, there=lambda: plug.there) as recorder:
        wait_for(lambda: len(recorder.captures) == 1)
        plug.there = False
        recorder.thread.look_again()
        wait_for(lambda: recorder.thread.absent)
        assert "unplugged" in recorder.thread.state.error
        plug.there = True
        recorder.thread.look_again()
        wait_for(lambda: len(recorder.captures) == 2)
    assert recorder.story == ["opening", "streaming", "lost", "streaming"]


def test_without_being_told_a_silent_device_that_was_pulled_out_still_seems_to_stream() -> None:
    plug = Plug(there=True)
    with Recorder(plug.open, there=lambda: plug.there) as recorder:
        wait_for(lambda: len(recorder.captures) == 1)
        plug.there = False
        time.sleep(0.1)
        assert recorder.thread.state.state == "streaming"


def test_a_device_that_is_plugged_in_cuts_the_wait_after_earlier_failures_short() -> None:
    plug = Plug(there=True)
    sources = in_turn(Scripted([SourceLostError("busy")]), Scripted([1]))
    slow = Backoff(first_seconds=600.0, cap_seconds=600.0)
    with Recorder(sources, there=lambda: plug.there, backoff=slow) as recorder:
        wait_for(lambda: recorder.story[-1] == "lost")
        wait_for(lambda: (recorder.thread.look_again(), recorder.captures)[1])


def test_a_source_that_waits_for_its_device_stops_when_told() -> None:
    plug = Plug(there=False)
    recorder = Recorder(plug.open, there=lambda: plug.there)
    recorder.thread.start()
    wait_for(lambda: recorder.thread.absent)
    assert recorder.thread.stop(1.0)


class Hanging(Scripted):
    """Is lost at once, and its reader stays in the device until it is let go."""

    def __init__(self, let_go: threading.Event) -> None:
        super().__init__([SourceLostError("no usable picture")])
        self._let_go = let_go

    @property
    def lingers(self) -> bool:
        return not self._let_go.is_set()


class HangingAndSilent(Scripted):
    """The same, and nobody can tell."""


@pytest.mark.parametrize("tells", [True, False], ids=["it tells", "control: it does not"])
def test_a_device_whose_reader_hangs_is_opened_again_only_when_that_has_ended(tells: bool) -> None:
    let_go = threading.Event()
    opened: list[Source] = []

    def open_it() -> Source:
        hangs = Hanging(let_go) if tells else HangingAndSilent([SourceLostError("no usable picture")])
        opened.append(Scripted([1]) if let_go.is_set() else hangs)
        return opened[-1]

    with Recorder(open_it) as recorder:
        wait_for(lambda: recorder.thread.state.reopens >= 20)
        assert (len(opened) == 1) is tells
        if tells:
            assert "still hangs in the device" in recorder.thread.state.error
        let_go.set()
        wait_for(lambda: recorder.sequences == [1])
