"""Updates over the air in the rig: a registry that signs, a release that is better, and one that is bad on purpose.

As in the rest of the rig, everything is done with the commands that an operator uses.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gateway.wire.manifest import MANIFEST_FILE
from hil.loopback.children import RigError, free_port
from hil.loopback.rig import Rig

MODEL: Final = "process-anomaly"
PIPELINE: Final = "temperature"
BETTER: Final = "1.1.0"
BAD: Final = "1.2.0"
_SHIPPED: Final = Path(__file__).parents[2] / "gateway" / "models" / MODEL / "1.0.0"
_FACTORS: Final = {BETTER: 0.98, BAD: 0.02}
"""What is done to the threshold. With a fiftieth of it, all that is healthy is an anomaly: the file is right, its
golden inputs are answered as they should be, and only what it says of live data shows that it is no good. Any other
version is as good as the one that is shipped."""

_ANSWER_SECONDS: Final = 20.0

Outcome = tuple[str, str]
"""How the device ended with a release, `running` or `reverted`, and how the rollout ended, `done` or `halted`."""


@dataclass
class Updates:
    """What a site needs for updates over the air, below one directory."""

    directory: Path
    port: int = field(default_factory=free_port)
    trial_seconds: float = 4.0
    ended: dict[str, Outcome] = field(default_factory=dict)
    gaps_ms: list[float] = field(default_factory=list)
    lost: int = 0

    def gateway_settings(self) -> dict[str, Any]:
        """Return what the gateway's configuration says besides."""
        # A rig shares its machine with whatever else runs there, so latency is judged generously.
        # A trial of seconds sees a day of faults in the recording or none; a release that is bad answers all otherwise.
        trial = {
            "seconds": self.trial_seconds,
            "min_inferences": 60,  # scores are compared from 50 on
            "max_latency_ratio": 20.0,
            "drift_effect": 0.6,
        }
        return {
            "ota": {
                "root_file": str(self._root_file),
                "url": f"https://127.0.0.1:{self.port}",
                "trial": trial,
            }
        }

    def bridge_settings(self) -> dict[str, Any]:
        """Return what the bridge's configuration says besides."""
        return {
            "registry": {
                "url": str(self.directory / "registry"),
                "keys": str(self.directory / "registry-keys"),
                "port": self.port,
            },
            "rollout": {"every_seconds": 0.5, "soak_minutes": 0.02},
        }

    @property
    def _root_file(self) -> Path:
        return self.directory / "trusted-root.json"

    def prepare(self, rig: Rig) -> None:
        """Begin the registry, and bring its root to the device; before the gateway starts.

        Raises:
            RigError: a command fails.
        """
        self._in_cloud(rig, "registry", "init", "--root-directory", str(self.directory / "root-keys"))
        self._root_file.write_text(self._in_cloud(rig, "registry", "root"))

    def publish(self, rig: Rig, version: str) -> None:
        """Publish a release and begin its rollout.

        Raises:
            RigError: it is refused.
        """
        self.offer(rig, version)
        what = ("--model", f"{MODEL}@{version}", "--pipeline", PIPELINE, "--waves", "rest")
        self._in_cloud(rig, "rollout", "create", *what)

    def offer(self, rig: Rig, version: str) -> None:
        """Publish a release, and roll it out to nobody.

        Raises:
            RigError: it is refused.
        """
        release = self.directory / "releases" / version
        shutil.copytree(_SHIPPED, release, dirs_exist_ok=True)
        manifest = json.loads((_SHIPPED / MANIFEST_FILE).read_bytes())
        manifest["version"] = version
        manifest["lineage"] = {**(manifest.get("lineage") or {}), "parent": "1.0.0"}
        manifest["output"]["threshold"] = round(manifest["output"]["threshold"] * _FACTORS.get(version, 1.0), 4)
        (release / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2))
        self._in_cloud(rig, "model", "publish", str(release))

    def run(self, rig: Rig, stopping: Callable[[], bool], say: Callable[[str], None], *, seconds: float = 60.0) -> None:
        """Give out the better release, then the bad one, and wait each time until device and rollout have ended.

        Raises:
            RigError: a command fails, or one of them does not end in time.
        """
        for version, kind in ((BETTER, "a better release"), (BAD, "one that is bad on purpose")):
            if stopping():
                return
            before = self._dropped(rig)
            say(f"    publishing {kind}: {MODEL} {version}, rolled out to {PIPELINE}")
            self.publish(rig, version)
            deadline = time.monotonic() + seconds
            while (outcome := self._outcome(rig, version)) is None:
                if stopping():
                    say(f"    {MODEL} {version}: the demo was over before this came to an end: let it run longer")
                    return
                self._note_gap(rig)
                if time.monotonic() > deadline:
                    raise RigError(f"{MODEL} {version} came to no end within {seconds:.0f} s\n{rig.gateway.tail()}")
                time.sleep(0.2)
            self.ended[version] = outcome
            self._note_gap(rig)
            self.lost += self._dropped(rig) - before
            say(f"    {MODEL} {version}: the device says {outcome[0]}, the rollout is {outcome[1]}{self._why(rig)}")
            if outcome[1] == "halted" and version != BAD:  # as an operator does: it would stand in the way of the next
                self._in_cloud(rig, "rollout", "abort", self._rollout(rig, version)["id"])

    def summary(self) -> dict[str, Any]:
        """Return what the closing document says of updates."""
        ends = [outcome[0] for outcome in self.ended.values()]
        return {
            "updates": ends.count("running"),
            "rollbacks": ends.count("reverted"),
            "frames_lost_in_swaps": self.lost,
            "max_swap_gap_ms": max(self.gaps_ms, default=None),
        }

    def _outcome(self, rig: Rig, version: str) -> Outcome | None:
        told = self._told(rig)
        release = f"{MODEL}@{version}"
        phase = self._rollout(rig, version).get("phase", "")
        if told.get("model", {}).get("version") != version or told.get("phase") not in ("running", "reverted"):
            # Once the rollout has taken it back, the device speaks of what it was given instead.
            back = phase == "halted" and any(
                event["what"] == "reverted" and event["model"] == release for event in self._status(rig)["history"]
            )
            return ("reverted", phase) if back else None
        return (told["phase"], phase) if phase in ("done", "halted") else None

    def rollouts(self, rig: Rig) -> list[dict[str, Any]]:
        """Return all rollouts, as `cloud-bridge rollout list` has them.

        Raises:
            RigError: the command fails.
        """
        return [json.loads(line) for line in self._in_cloud(rig, "rollout", "list", "--json").splitlines()]

    def _rollout(self, rig: Rig, version: str) -> Mapping[str, Any]:
        return next((one for one in self.rollouts(rig) if one["release"] == f"{MODEL}@{version}"), {})

    def _note_gap(self, rig: Rig) -> None:
        gap = self._told(rig).get("swap_gap_ms")
        if gap is not None:
            self.gaps_ms.append(gap)

    def _why(self, rig: Rig) -> str:
        history = self._status(rig).get("history", [])
        return next((f" ({event['detail']})" for event in reversed(history) if event["what"] == "reverted"), "")

    def _told(self, rig: Rig) -> Mapping[str, Any]:
        return (self._status(rig).get("pipelines", {}).get(PIPELINE) or {}).get("told") or {}

    def _status(self, rig: Rig) -> dict[str, Any]:
        return rig.gateway_updates() or {}

    def _dropped(self, rig: Rig) -> int:
        """Count what the pipeline has dropped so far, for any reason.

        Raises:
            RigError: the gateway does not say. To take that for none would hide what was lost.
        """
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            found = [one for one in (rig.gateway_status() or {}).get("pipelines", []) if one["pipeline"] == PIPELINE]
            if found:
                return sum(sum(one["dropped"].values()) for one in found)
            if time.monotonic() > deadline:
                raise RigError(f"the gateway does not say what {PIPELINE} has dropped\n{rig.gateway.tail()}")
            time.sleep(0.2)

    def _in_cloud(self, rig: Rig, *words: str) -> str:
        if rig.site is None:
            raise RigError("updates need a secured site: the registry answers devices with a certificate only")
        return rig.site.in_cloud(*words)


class Background:
    """Runs updates beside something else. What went wrong is raised where it is asked for, not in the thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: RigError | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="updates")

    @property
    def ended(self) -> bool:
        """Whether all updates are through.

        Raises:
            RigError: one of them was not carried out.
        """
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except RigError as error:
            self._error = error
