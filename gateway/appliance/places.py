"""Where things lie on an appliance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one device.

    `settings` and `state` are named by where they are on the data partition and not by `/etc/sluice` and
    `/var/lib/sluice`, which are mounts of them: files are put in place by renaming, which no mount may cross.
    """

    settings: Path  # what a person or a claim has decided; survives updates
    state: Path  # the gateway's state directory
    runtime: Path  # the gateway's control socket
    run: Path  # of systemd: where networkd and timesyncd look for what is valid until the next boot
    system: Path  # read-only, of the image: release.json, gateway.base.yaml
    share: Path  # read-only, of the image: keys, list of contents
    esp: Path  # the boot partition
    devices: Path = Path("/dev")
    sysfs: Path = Path("/sys")
    mounts: Path = Path("/run/sluice-media")

    @classmethod
    def of_image(cls) -> Self:
        """Return those of the image."""
        return cls(
            settings=Path("/data/etc-sluice"),
            state=Path("/data/lib-sluice"),
            runtime=Path("/run/sluice"),
            run=Path("/run"),
            system=Path("/usr/lib/sluice"),
            share=Path("/usr/share/sluice"),
            esp=Path("/efi"),
        )

    @classmethod
    def below(cls, root: Path) -> Self:
        """Return the same layout below a directory, for a trial run or a mounted disk."""
        return cls(
            settings=root / "data/etc-sluice",
            state=root / "data/lib-sluice",
            runtime=root / "run/sluice",
            run=root / "run",
            system=root / "usr/lib/sluice",
            share=root / "usr/share/sluice",
            esp=root / "efi",
            devices=root / "dev",
            sysfs=root / "sys",
            mounts=root / "run/sluice-media",
        )

    @property
    def config(self) -> Path:
        """The gateway's configuration: the device is provisioned when it is there."""
        return self.settings / "gateway.yaml"

    @property
    def base_config(self) -> Path:
        """What the image says of every device: paths, and where the TPM's policy is."""
        return self.system / "gateway.base.yaml"

    @property
    def release(self) -> Path:
        """Which image this is."""
        return self.system / "release.json"

    @property
    def provisioned(self) -> Path:
        """Who provisioned this device, from what, and when."""
        return self.settings / "provisioned.json"

    @property
    def health(self) -> Path:
        """The last word on the health of this boot."""
        return self.state / "health.json"

    @property
    def health_until_reboot(self) -> Path:
        """The same, where the disk does not take it: in memory, for the boot that it is about."""
        return self.run / "sluice-health" / "health.json"

    @property
    def reset_request(self) -> Path:
        """A wish to erase everything at the next boot."""
        return self.state / "reset-request.json"

    @property
    def reset_marker(self) -> Path:
        """Says that erasing has begun; on the boot partition, because the data partition is what goes."""
        return self.esp / "sluice-reset"

    @property
    def reset_code(self) -> Path:
        """Whose reset code a stick must have, once more on the boot partition: for when the data cannot be opened."""
        return self.esp / "sluice-reset-code.json"
