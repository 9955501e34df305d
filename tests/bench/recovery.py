"""How soon records flow again after the link to the cloud was cut and has healed."""

import math
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.uplink.backoff import Backoff
from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import outbox_counts, tally_of
from tests.bench.echo import echo_pipeline, ticking, write_echo
from tests.bench.figures import percentiles
from tests.bench.link import NamespaceLink, ProxyLink, namespaces_work
from tests.bench.table import row
from tests.bench.watching import Watch, events_of

ROUNDS = 24
RATE_HZ = 20.0
CUT_SECONDS = (1.0, 30.0)
STEADY_SECONDS = (0.5, 1.5)
AIM_P95_SECONDS = 5.0


def recover(seed: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds from the healing of a silent cut until the bridge has committed a record made after it, and any new one.

    In a namespace packets vanish and TCP is told nothing; without root our proxy resets the connections when it heals.
    """
    chance = random.Random(seed)
    lengths = cut_lengths(chance, rounds)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        folder = Path(directory)
        rig = stack.enter_context(_rig(folder))
        database = folder / "rig" / "bridge" / "bridge.db"
        link: NamespaceLink | ProxyLink
        if namespaces_work():
            link = stack.enter_context(NamespaceLink(rig.ports.broker))
        else:
            link = stack.enter_context(ProxyLink(rig.ports.broker))
        if link.kind == "namespace":
            with (rig.directory / "broker.conf").open("a") as file:
                file.write(f"listener {link.port} {link.host}\n")
        url = f"mqtt://{link.host}:{link.port}"
        rig.gateway_settings["cloud"]["brokers"] = [{"url": url, "allow_plaintext": True}]
        rig.write()
        rig.gateway.command = link.command(rig.gateway.command)
        watch = stack.enter_context(Watch(database, "event"))
        rig.start()
        eventually(lambda: watch.highest > 20, "records flow", 30.0)
        healed: list[int] = []
        for length in lengths:
            time.sleep(chance.uniform(*STEADY_SECONDS))  # not for a condition: it is part of the schedule
            link.cut()
            time.sleep(length)
            link.heal()
            healed.append(time.time_ns())
            _, given, _ = outbox_counts(rig.outbox_file)
            eventually(lambda given=given: watch.highest > given, "records flow again", 60.0)  # type: ignore[misc]
        rig.gateway.stop(60.0)
        eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
        counts = tally_of(rig)
        rig.stop()
        made = [(event.captured_at_ns, seq) for seq, event in events_of(database, "event")]
    first = [(_known(watch.first_after(at)) - at) / 1e9 for at in healed]
    fresh = []
    for at in healed:
        _, seq = next(each for each in made if each[0] > at)
        fresh.append((_known(watch.committed_at(seq)) - at) / 1e9)
    cap = Backoff().unreachable_cap_seconds
    figures = percentiles(fresh)
    return {
        "unit": "s",
        "link": link.kind,
        "seed": seed,
        "rounds": rounds,
        "first_committed": percentiles(first),
        "made_after_healing_committed": figures,
        "each": [[round(length, 2), round(seconds, 2)] for length, seconds in zip(lengths, fresh, strict=True)],
        "reconnect_cap_seconds": cap,
        "lost": counts.lost,
        "duplicates": counts.duplicates,
        "rows": [
            row(
                f"link healed until the bridge has committed a record made after that; {rounds} silent cuts of "
                f"{CUT_SECONDS[0]:g} to {CUT_SECONDS[1]:g} s ({link.kind})",
                f"p50 {figures['p50']:.2f} s, **p95 {figures['p95']:.2f} s**, max {figures['max']:.2f} s",
                aim=f"p95 ≤ {AIM_P95_SECONDS:g} s, max ≤ {2 * cap:g} s",
                met=figures["p95"] <= AIM_P95_SECONDS and figures["max"] <= 2 * cap,
            ),
            row(
                "lost, and stored twice, over all cuts",
                f"{counts.lost}, {counts.duplicates}",
                aim="0, 0",
                met=counts.lost == counts.duplicates == 0,
            ),
        ],
    }


def cut_lengths(chance: random.Random, rounds: int) -> list[float]:
    """Draw one length from each of as many equal parts of the range, on a logarithmic scale, and shuffle them.

    Outages are like that: many short ones, few long ones. TCP waits longer before each next try, so that how long a
    connection stays silent after a cut depends on its length; the parts make each run meet all of that.
    """
    low, high = map(math.log, CUT_SECONDS)
    lengths = [math.exp(low + (high - low) * (part + chance.random()) / rounds) for part in range(rounds)]
    chance.shuffle(lengths)
    return lengths


def _rig(folder: Path) -> Rig:
    return Rig(
        folder / "rig",
        {"ticks": ticking(folder, RATE_HZ)},
        {"ticks": echo_pipeline("ticks")},
        gateway={"models": {"directories": [str(write_echo(folder / "models"))]}, "local": {"broker": None}},
    )


def _known(at_ns: int | None) -> int:
    assert at_ns is not None
    return at_ns
