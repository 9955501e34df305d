"""A counter that nobody can turn back, as the TPM key store offers it, with the power failing wherever a test wants."""

from dataclasses import dataclass, field

from gateway.ota.floor_file import Anchor
from gateway.vault.errors import KeyStoreUnavailableError, VaultError


class PowerCut(BaseException):
    """The program ends here."""


@dataclass
class CounterSimulator:
    """Knobs: `failing` is raised by every call, `cut_after` calls the power goes, `step_at_begin` as other TPMs do.

    What `count_floor` has counted stays counted when the power goes right after it.
    """

    value: int | None = None
    highest: int = 0
    failing: VaultError | None = None
    cut_after: int | None = None
    step_at_begin: int = 1
    counted: int = 0
    keys: list[bytes] = field(default_factory=lambda: [bytes(32)])

    @property
    def anchor(self) -> Anchor:
        """As the floor takes it."""
        return Anchor(self, self._key, self._new_key)

    def floor_count(self) -> int | None:
        """Read."""
        self._asked()
        return self.value

    def floor_forecast(self) -> int:
        """Say where one that is made now would begin, as far as can be told."""
        self._asked()
        self.highest += 1
        return self.highest + 1

    def count_floor(self) -> int:
        """Count, or begin."""
        self._asked()
        self.value = self.highest + self.step_at_begin if self.value is None else self.value + 1
        self.highest = self.value
        self.counted += 1
        self._asked()
        return self.value

    def remove(self) -> None:
        """As who owns the TPM can."""
        self.value = None

    def answers_not(self) -> None:
        """Be away."""
        self.failing = KeyStoreUnavailableError("the TPM does not answer")

    def _key(self) -> bytes:
        self._asked()
        return self.keys[-1]

    def _new_key(self) -> bytes:
        self._asked()
        self.keys.append(bytes([len(self.keys)]) * 32)
        return self.keys[-1]

    def _asked(self) -> None:
        if self.failing is not None:
            raise self.failing
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                raise PowerCut
