"""The page about the contract shows the frozen samples, and names every channel."""

import json
import re
from pathlib import Path

from gateway.wire.messages import MESSAGES
from gateway.wire.topics import CHANNELS

ROOT = Path(__file__).parents[3]


def test_the_page_shows_each_sample_as_it_is_frozen() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    for name in MESSAGES:
        sample = json.loads((ROOT / "gateway" / "wire" / "samples" / f"{name}.json").read_bytes())
        assert sample in shown, f"the sample of {name} is not in docs/wire.md"
    assert len(shown) == len(MESSAGES)


def test_the_page_names_every_channel() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    for channel in CHANNELS:
        assert f"`{channel}/" in page
