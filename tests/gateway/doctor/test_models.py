"""The doctor looks at the releases of the pipelines."""

from pathlib import Path

from gateway.config import Config, Gateway, HealthSource, Pipeline, Rule, Vault
from gateway.doctor.models import check_models

SOFTWARE = Vault(level="software")


def config(model: str, *labels: str) -> Config:
    rule = Rule(name="r", labels=list(labels) or None)
    return Config(
        gateway=Gateway(id="g", state_directory=Path("unused")),
        sources={"s": HealthSource()},
        pipelines={"p": Pipeline(source="s", model=model, rules=[rule])},
        vault=SOFTWARE,
    )


def test_a_release_that_ships_is_found_with_all_digests_right() -> None:
    (found,) = check_models(config("vibration-anomaly", "anomaly"))
    assert found.verdict == "ok"


def test_a_label_the_model_never_gives_is_told_with_the_one_meant() -> None:
    _, label = check_models(config("vibration-anomaly", "anomly"))
    assert label.verdict == "failed"
    assert "never fires" in label.found
    assert "'anomaly'" in label.remedy


def test_a_rule_that_fires_for_some_of_its_labels_is_a_warning() -> None:
    _, label = check_models(config("vibration-anomaly", "anomaly", "Motorcycle"))
    assert label.verdict == "warning"
    assert "'Motorcycle', so the rule never fires for it, though for others" in label.found
    assert "it knows anomaly" in label.remedy


def test_a_misspelt_model_is_told() -> None:
    (found,) = check_models(config("vibration-anomoly"))
    assert found.verdict == "failed"
