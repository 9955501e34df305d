"""Sign the vault's approvals for an image. Runs in the tools tree, whose Python has what gateway.vault.policy needs.

    python3 -m image.builder.approve KEY OUT VERSION GENERATION SLOT=PCR11…

Writes `SLOT.policy.json` for each slot: PCR 11 as the slot's kernel image leaves it when the gateway runs, and a
counter not above GENERATION. Besides `first.policy.json`, and one `advance-N.policy.json` for each step up to
GENERATION, so that a device which skipped releases can take all of them.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from gateway.vault import policy


def approvals(
    version: str, generation: int, slots: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, policy.Approval]:
    """Return the approvals of an image by file name.

    Args:
        version: of the release, for people.
        generation: what the counter is counted up to by this image.
        slots: PCR 11 by slot, hex.
        more: other registers by number, hex; the same for both slots.
    """
    made: dict[str, policy.Approval] = {
        f"{slot}.policy.json": policy.BootState(
            name=f"{version}-{slot}", pcrs={"11": value, **more}, counter_at_most=generation
        )
        for slot, value in slots.items()
    }
    made["first.policy.json"] = policy.FirstCount(name="first")
    for step in range(1, generation):
        made[f"advance-{step}.policy.json"] = policy.Advance(name=f"advance-{step}", counter=step)
    return made


def main(words: list[str]) -> int:
    """Carry it out."""
    key_file, out, version, generation, *pairs = words
    private = policy.read_signing_key(Path(key_file).read_bytes())
    values = dict(pair.split("=", 1) for pair in pairs)
    slots = {name: value for name, value in values.items() if not name.isdigit()}
    more = {name: value for name, value in values.items() if name.isdigit()}
    for name, approval in approvals(version, int(generation), slots, more).items():
        target = Path(out) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(policy.encode(policy.sign(approval, private)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
