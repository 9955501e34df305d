"""`make bench [ARGS="NAME …"]`: run the benchmarks; progress on stderr, one JSON document on stdout."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import structlog

from tests.bench import delivery, device, outbox

BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "pipeline-efficiency": device.pipeline_efficiency,
    "decision-latency": device.decision_latency,
    "sensor-latency": device.sensor_latency,
    "start-up": device.start_up,
    "memory": device.memory,
    "outbox-enqueue": outbox.enqueue,
    "outbox-open": outbox.open_with_backlog,
    "delivery-drain": delivery.drain,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHMARKS)))
def main(names: tuple[str, ...]) -> None:
    """Run the named benchmarks, or all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        }
    }
    for name in names or BENCHMARKS:
        click.echo(f"==> {name}", err=True)
        started = time.perf_counter()
        results[name] = BENCHMARKS[name]()
        click.echo(f"    {json.dumps(results[name])}  ({time.perf_counter() - started:.0f} s)", err=True)
    click.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    sys.exit(main())
