"""Plays a recording through one pipeline, to see what it would tell: without broker, outbox, vault or device.

The rules see the recording's own time, however fast it is played: what is held for two seconds is held for two seconds
of the recording. The model runs on the CPU, from a release that lies in clear.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from gateway.config import CameraSource, Config, ReplaySource
from gateway.config import Source as SourceSettings
from gateway.errors import ConfigError, ModelError, SourceLostError
from gateway.ids import new_id
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.plain import open_plain
from gateway.inference.select import load_model
from gateway.pipeline import Pipeline
from gateway.preprocess.preparation import preparation_for
from gateway.sources.base import Source
from gateway.sources.replay import SAMPLE_FILES, SampleReplay
from gateway.surroundings import Surroundings
from gateway.values import Capture, Entry, Frame, Inference, Receipt
from gateway.wire.messages import Event, Evidence, ModelRef

SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Told:
    """What the pipeline would have sent, at this time of the recording."""

    offset_seconds: float
    event: Event


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A recording that was played to its end."""

    pipeline: str
    model: ModelRef
    backend: str
    recorded_seconds: float
    samples: int  # pictures or windows that the model has looked at
    events: int
    pictures: int  # that would have travelled as evidence
    slowest_ms: float
    mean_ms: float
    dropped: dict[str, int]


def try_out(
    config: Config,
    pipeline: str,
    recording: Path,
    tell: Callable[[Told], None],
    *,
    began_ns: int,
    rate_hz: float | None = None,
    directories: Sequence[Path] = (),
) -> Outcome:
    """Play a recording through a pipeline of the configuration; `tell` gets each event in order.

    Args:
        config: read, with its files or without.
        pipeline: its name there.
        recording: a video, a CSV or an npz file.
        tell: called on another thread, while it plays.
        began_ns: when the recording is to have begun (UTC), for rules that have times of day.
        rate_hz: of samples without times, or of pictures whose file does not say; default: as the source's.
        directories: searched for releases before those of the configuration.

    Raises:
        ConfigError: there is no such pipeline, or the recording cannot be played, or is of no use for its model.
        ModelError: the model cannot be used here.
    """
    settings = config.pipelines.get(pipeline)
    if settings is None:
        raise ConfigError(f"there is no pipeline {pipeline!r}; there is {', '.join(config.pipelines) or 'none'}")
    source = config.sources[settings.source]
    clock = _RecordedTime(began_ns)
    played = _Played(settings.source, _replay_of(source, recording, rate_hz), _most_fps(source), clock)
    kept = _Kept(tell, began_ns)
    releases = ReleaseStore((*directories, *config.models.directories))
    settings = msgspec.structs.replace(settings, backend="auto", device="")
    tried = Pipeline(
        pipeline,
        settings,
        played.settings,
        Surroundings(
            gateway=config.gateway.id,
            time_zone=ZoneInfo(config.gateway.time_zone),
            open_source=lambda: played,
            load_model=partial(
                load_model, releases, settings, preparation_for, open_plain, backends=(LiteRtBackend(),)
            ),
            submit=kept.submit,
            publish=kept.publish,
            instruments=kept,
            new_id=new_id,
            wall_ns=clock.wall_ns,
            monotonic_ns=clock.monotonic_ns,
        ),
    )
    tried.run()
    totals = tried.totals()
    if played.error is not None:
        raise played.error
    if not totals.inferences and totals.last_error:
        raise ConfigError(totals.last_error)
    if totals.model is None:
        raise ModelError(f"pipeline {pipeline} loaded no model")
    return Outcome(
        pipeline=pipeline,
        model=totals.model,
        backend=totals.backend,
        recorded_seconds=round(clock.elapsed_ns / SECOND_NS, 3),
        samples=totals.inferences,
        events=totals.events,
        pictures=kept.pictures,
        slowest_ms=round(max(kept.took_ms, default=0.0), 2),
        mean_ms=round(sum(kept.took_ms) / len(kept.took_ms), 2) if kept.took_ms else 0.0,
        dropped=totals.dropped,
    )


def _replay_of(source: SourceSettings, recording: Path, rate_hz: float | None) -> ReplaySource:
    """Return the settings of a replay that stands for a source; one that is a replay already keeps its columns."""
    if not recording.is_file():
        raise ConfigError(f"{recording} is not there, or is no file; give a video, a CSV or an npz file")
    known = getattr(source, "rate_hz", None)
    kept = source if isinstance(source, ReplaySource) else ReplaySource(file=recording)
    return msgspec.structs.replace(kept, file=recording, speed="max", loop=False, rate_hz=rate_hz or known)


def _most_fps(source: SourceSettings) -> float | None:
    return source.fps if isinstance(source, CameraSource) else None


class _RecordedTime:
    """The time of the recording, as far as it was played. The capture thread sets it, and both threads read it."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self.elapsed_ns = 0

    def wall_ns(self) -> int:
        return self._began_ns + self.elapsed_ns

    def monotonic_ns(self) -> int:
        return self.elapsed_ns


class _Played:
    """A recording as a source whose captures carry the recording's own time. What is wrong with it ends it."""

    def __init__(self, name: str, settings: ReplaySource, most_fps: float | None, clock: _RecordedTime) -> None:
        self.settings = settings
        self.error: ConfigError | None = None
        self._most_fps = most_fps
        self._clock = clock
        self._name = name
        self._source = self._opened()

    def _opened(self) -> Source:
        if self.settings.file.suffix.lower() in SAMPLE_FILES:
            return SampleReplay(self._name, self.settings, wall_clock=self._clock.wall_ns)
        from gateway.sources.video import VideoFile  # noqa: PLC0415 - samples alone need no OpenCV

        return VideoFile(self._name, self.settings)

    @property
    def name(self) -> str:
        return self._name

    @property
    def drops(self) -> dict[str, int]:
        return self._source.drops

    def close(self) -> None:
        self._source.close()

    def captures(self) -> Iterator[Capture]:
        try:
            yield from self._on_recorded_time()
        except SourceLostError as error:
            self.error = ConfigError(str(error))
        except ConfigError as error:
            self.error = error

    def _on_recorded_time(self) -> Iterator[Capture]:
        began_ns = self._clock.wall_ns()
        interval_ns = round(SECOND_NS / self._fps()) if self.settings.file.suffix.lower() not in SAMPLE_FILES else 0
        due_ns = frames = 0
        for capture in self._source.captures():
            if isinstance(capture, Frame):
                at_ns, frames = frames * interval_ns, frames + 1
                if at_ns >= due_ns:  # else the camera would not have given it
                    due_ns += round(SECOND_NS / self._most_fps) if self._most_fps else 0
                    yield replace(capture, captured_at_ns=began_ns + at_ns, received_ns=at_ns)
            else:
                length_ns = round(len(capture.samples) * SECOND_NS / capture.rate_hz)
                at_ns = capture.captured_at_ns - began_ns + length_ns
                yield replace(capture, received_ns=at_ns)
            self._clock.elapsed_ns = at_ns  # only now: until it was handed over its time has not come

    def _fps(self) -> float:
        from gateway.sources.video import fps_of  # noqa: PLC0415 - as above

        return self.settings.rate_hz or fps_of(self.settings.file)


class _Kept:
    """In place of outbox, channels and metrics: hands events on, and counts."""

    def __init__(self, tell: Callable[[Told], None], began_ns: int) -> None:
        self._tell = tell
        self._began_ns = began_ns
        self.pictures = 0
        self.took_ms: list[float] = []

    def submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self.pictures += sum(isinstance(entry.body, Evidence) for entry in entries)
        done([])

    def publish(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if isinstance(entry.body, Event):
                offset = (entry.body.captured_at_ns - self._began_ns) / SECOND_NS
                self._tell(Told(round(offset, 3), entry.body))

    def inferred(self, pipeline: str, inference: Inference, latency_seconds: float, batch_fill: float) -> None:  # noqa: ARG002 - as metrics have it
        self.took_ms.append(inference.invoke_ns / 1e6)

    def captured(self, pipeline: str, count: int) -> None:
        """Count nothing."""

    def sent(self, pipeline: str, raw_bytes: int, sent_bytes: int) -> None:
        """Count nothing."""

    def told(self, pipeline: str, event: Event) -> None:
        """Count nothing."""
