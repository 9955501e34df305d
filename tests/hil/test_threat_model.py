"""The threat model names tests; a test that was renamed must not leave a claim without its proof."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PLACES = {
    "e2e": "tests/e2e/security",
    "bridge": "tests/cloud_bridge/identity",
    "device": "tests/gateway/identity",
    "vault": "tests/gateway/vault",
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["docs/security.md", "docs/identity.md", "README.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"(?<![/\w])(test_\w+)(?!\w*\.py)\b", text_of(document)))
    missing = {name for name in named if f"def {name}(" not in sources}
    assert missing == set()


def test_every_file_that_the_threat_model_names_is_there() -> None:
    text = text_of("docs/security.md")
    named = re.findall(r"`(e2e|bridge|device|vault)/([\w/]+\.py)", text)
    assert len(named) > 20
    missing = {f"{place}/{file}" for place, file in named if not (ROOT / _PLACES[place] / file).is_file()}
    assert missing == set()


def test_a_test_that_is_not_there_would_be_noticed() -> None:
    assert "def test_of_nothing_at_all" + "(" not in Path(__file__).read_text(encoding="utf-8")
    found = re.findall(r"`(e2e|bridge|device|vault)/([\w/]+\.py)", "`e2e/test_nothing.py`")
    assert [file for place, file in found if not (ROOT / _PLACES[place] / file).is_file()] == ["test_nothing.py"]
