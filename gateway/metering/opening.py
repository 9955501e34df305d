"""Makes the meter of the link as configured."""

from pathlib import Path
from zoneinfo import ZoneInfo

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.health.probes import kernel_clock_state
from gateway.metering.ledger import FILE_NAME, Ledger
from gateway.metering.meter import Meter
from gateway.uplink.gate import is_metered


def open_meter(config: Config, state_directory: Path) -> Meter:
    """Go on with the figures in the state directory; the first broker of the list says whether the link is metered.

    Raises:
        ConfigError: a window of the configuration cannot be understood.
    """
    brokers = config.cloud.brokers
    try:
        return Meter(
            config.metering,
            ZoneInfo(config.gateway.time_zone),
            Ledger(state_directory / FILE_NAME),
            metered=not brokers or is_metered(brokers[0], brokers),
            synchronised=lambda: kernel_clock_state() == "synchronised",
        )
    except ValueError as error:
        raise ConfigError(f"metering: a window cannot be understood: {error}") from error
