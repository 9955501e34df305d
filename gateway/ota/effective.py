"""Which release each pipeline would begin with if the gateway were started now, for those who only look."""

from collections.abc import Mapping

from gateway.config import Config
from gateway.inference.bundle import ReleaseStore
from gateway.ota.journal import Book, Installed, peek
from gateway.ota.slots import is_usable, model_for


def came_over_the_air(releases: ReleaseStore) -> list[Installed]:
    """Return the releases that are marked in the store as having come over the air."""
    return [Installed(name=each.name, version=each.version) for each in releases.releases() if each.over_the_air]


def effective_models(config: Config, releases: ReleaseStore) -> Mapping[str, str]:
    """Return the `name@version`, or the name alone, that each pipeline really loads.

    What has been assigned over the air wins over the configuration, so a check of the configuration must look at the
    manifest of that. Reads the journal, and changes nothing.

    Args:
        config: of the gateway.
        releases: all that are on this device.
    """
    if config.ota is None:
        return {name: pipeline.model for name, pipeline in config.pipelines.items()}
    book, there = _book(config, releases), _there(releases)
    return {name: model_for(book, name, pipeline.model, there) for name, pipeline in config.pipelines.items()}


def awaiting_pipelines(config: Config, releases: ReleaseStore) -> frozenset[str]:
    """Return the pipelines that would wait for a release to come over the air, because none is here that they may run.

    Reads the journal, and changes nothing; arguments as of `effective_models`. Without a section `ota` none comes: what
    is missing then is a mistake.
    """
    if config.ota is None:
        return frozenset()
    book, there = _book(config, releases), _there(releases)
    models = effective_models(config, releases)
    return frozenset(name for name, label in models.items() if not is_usable(book, name, label, there))


def _book(config: Config, releases: ReleaseStore) -> Book:
    return peek(config.gateway.state_directory, came_over_the_air(releases))


def _there(releases: ReleaseStore) -> list[tuple[str, str]]:
    return [(each.name, each.version) for each in releases.releases()]
