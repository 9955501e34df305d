"""`make bench [ARGS="NAME …"]`: run benchmarks; progress on stderr, one JSON document (or the table) on stdout."""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import structlog

from tests.bench import (
    backlog,
    bridge_growth,
    bridge_ingest,
    delivery,
    delta,
    device,
    identity,
    metadata,
    outbox,
    recovery,
    rollout,
    swap,
    vault,
)
from tests.bench.peers import compare
from tests.bench.table import closing, markdown

DEFAULT_SEED = 20_261_121
MISSED = 1
"""Exit status when an aim was missed."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`seconds` is about how long it takes; only quick ones run without being named."""

    run: Callable[[], dict[str, Any]]
    seconds: int
    quick: bool = True


def benchmarks(seed: int, systems: tuple[str, ...]) -> dict[str, Benchmark]:
    """Return all benchmarks by name, in the order they run in."""
    return {
        "pipeline-efficiency": Benchmark(device.pipeline_efficiency, 30),
        "decision-latency": Benchmark(device.decision_latency, 5),
        "sensor-latency": Benchmark(device.sensor_latency, 40),
        "start-up": Benchmark(device.start_up, 5),
        "memory": Benchmark(device.memory, 20),
        "outbox-enqueue": Benchmark(outbox.enqueue, 20),
        "outbox-open": Benchmark(outbox.open_with_backlog, 10),
        "start-with-backlog": Benchmark(backlog.start_with_backlog, 190, quick=False),
        "delivery-drain": Benchmark(delivery.drain, 60),
        "bridge-ingest": Benchmark(bridge_ingest.ingest, 90),
        "bridge-growth": Benchmark(bridge_growth.growth, 1500, quick=False),
        "delta": Benchmark(delta.sizes, 60),
        "identity-attestations": Benchmark(identity.attestations, 10),
        "metadata-refresh": Benchmark(metadata.refresh, 15),
        "rollout-gate": Benchmark(rollout.gate, 10),
        "rollout-errors": Benchmark(rollout.errors, 200, quick=False),
        "swap-gap": Benchmark(swap.gaps, 20),
        "patch-apply": Benchmark(swap.patch_apply, 120),
        "vault-boot": Benchmark(vault.boot_to_weights, 15),
        "vault-decryption": Benchmark(vault.decryption, 10),
        "vault-memory": Benchmark(vault.memory, 10),
        "delivery-recovery": Benchmark(partial(recovery.recover, seed), 220),
        "peers": Benchmark(partial(compare.compare, seed, systems), 1200, quick=False),
    }


NAMES = sorted(benchmarks(DEFAULT_SEED, ()))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--all", "everything", is_flag=True, help="Run the long ones too.")
@click.option("--seed", default=DEFAULT_SEED, show_default=True, help="Of all that is drawn: cuts, kills, instants.")
@click.option("--system", "systems", multiple=True, type=click.Choice(compare.NAMES), help="Of peers: only these.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here too."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print table rows for docs/benchmarks.md, not JSON.")
@click.option("--from", "earlier", type=click.Path(path_type=Path, exists=True), help="Measure nothing; read results.")
def main(
    *,
    names: tuple[str, ...],
    everything: bool,
    seed: int,
    systems: tuple[str, ...],
    json_file: Path | None,
    as_markdown: bool,
    earlier: Path | None,
) -> None:
    """Run the named benchmarks, or all quick ones; exit status 1 if an aim was missed."""
    # As an interrupt does it: what was started, mounted and made is taken away again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if earlier:
        results = json.loads(earlier.read_text())
    else:
        known = benchmarks(seed, systems)
        chosen = list(names) or [name for name, each in known.items() if everything or each.quick]
        results = _measure(known, chosen, seed, json_file)
        if not names and (left := [name for name in known if name not in chosen]):
            click.echo(f'==> not run, because they take long: {", ".join(left)}; make bench ARGS="NAME"', err=True)
    click.echo(markdown(results) if as_markdown else json.dumps(results, indent=2))
    lines, is_met = closing(results)
    for line in lines:
        click.echo(f"==> {line}", err=True)
    if not is_met:
        sys.exit(MISSED)


def _measure(known: dict[str, Benchmark], chosen: list[str], seed: int, json_file: Path | None) -> dict[str, Any]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    click.echo(f"==> about {sum(known[name].seconds for name in chosen) / 60:.0f} min, seed {seed}", err=True)
    results: dict[str, Any] = {"machine": {**_machine(), "seed": seed}}
    for name in chosen:
        click.echo(f"==> {name}", err=True)
        started = time.perf_counter()
        results[name] = known[name].run()
        brief = {key: value for key, value in results[name].items() if key not in ("rows", "table")}
        click.echo(f"    {json.dumps(brief)}  ({time.perf_counter() - started:.0f} s)", err=True)
        if json_file is not None:  # after each: an interrupted run keeps what it has
            json_file.write_text(json.dumps(results, indent=2) + "\n")
    return results


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


if __name__ == "__main__":
    sys.exit(main())
