"""The small programs of the overlay, run with stand-ins for what they call."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "image/overlay/usr/lib/sluice"
UNITS = SCRIPTS.parents[1] / "lib/systemd/system"


def called(
    tmp_path: Path,
    script: str,
    *words: str,
    programs: dict[str, str],
    statuses: tuple[int, ...] = (0,),
    **environment: str,
) -> list[str]:
    """Run a script; returns what it called, a line each. programs: by name, what they do besides."""
    folder, log = tmp_path / "bin", tmp_path / "called"
    folder.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{log}\n{body}\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["sh", str(SCRIPTS / script), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in statuses, done.stderr
    return log.read_text().splitlines()


SYSTEMCTL = """
case "$*" in
  is-failed*) exec test {state} = failed ;;
  *Result*) echo {result} ;;
  *ExecMainStatus*) echo {status} ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "result", "status", "starts_again"),
    [
        ("failed", "signal", 9, True),
        ("failed", "exit-code", 1, True),
        ("failed", "signal", 4, True),
        ("failed", "exit-code", 4, False),  # a person must change its configuration
        ("active", "success", 0, False),
    ],
)
def test_a_device_starts_again_for_a_gateway_that_cannot_be_kept_running_and_for_no_other(
    tmp_path: Path, state: str, result: str, status: int, *, starts_again: bool
) -> None:
    systemctl = SYSTEMCTL.format(state=state, result=result, status=status)
    programs = {"systemctl": systemctl, "mountpoint": "true"}
    calls = called(tmp_path, "stuck", programs=programs, SLUICE_STUCK_SECONDS="0")
    assert ("systemctl --no-block reboot" in calls) is starts_again


def test_a_gateway_that_somebody_has_mended_meanwhile_keeps_the_device_running(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    programs = {
        "systemctl": f"[ ! -e {mended} ] || exit 1\n" + SYSTEMCTL.format(state="failed", result="signal", status=9),
        "sleep": f"touch {mended}",
        "mountpoint": "true",
    }
    calls = called(tmp_path, "stuck", programs=programs, SLUICE_STUCK_SECONDS=str(1 << 40))
    assert "systemctl --no-block reboot" not in calls
    assert "sleep 10" in calls


@pytest.mark.parametrize(("is_mended", "starts_again"), [(False, True), (True, False)])
def test_a_device_whose_outbox_cannot_be_mounted_starts_again_unless_it_is_mended(
    tmp_path: Path, *, is_mended: bool, starts_again: bool
) -> None:
    mended = tmp_path / "mended"
    programs = {
        "mountpoint": f"test -e {mended}",
        # The gateway has not failed: it was not started.
        "systemctl": SYSTEMCTL.format(state="inactive", result="success", status=0),
        "sleep": f"touch {mended}",
    }
    calls = called(tmp_path, "stuck", programs=programs, SLUICE_STUCK_SECONDS=str(1 << 40) if is_mended else "0")
    assert calls[0] == "mountpoint -q /data/outbox"
    assert ("systemctl --no-block reboot" in calls) is starts_again


def test_the_gateway_is_not_started_without_its_outbox_and_the_boot_goes_on_without_it() -> None:
    """So nothing is recorded where it would be hidden or lost, and whoever mends the device can reach it."""
    fields = [line.split() for line in (SCRIPTS.parents[2] / "etc/fstab").read_text().splitlines() if line[:1] == "/"]
    options = {where: how.split(",") for _, where, _, how, *_ in fields}
    assert "nofail" in options["/data/outbox"]
    # It is there before the folders on it are made.
    assert "x-systemd.before=local-fs.target" in options["/data/outbox"]
    assert [where for where, how in options.items() if "nofail" in how] == ["/data/outbox"]
    for unit in ("gateway.service.d/10-appliance.conf", "sluice-provision.service"):
        wanted = [line for line in (UNITS / unit).read_text().splitlines() if line.startswith("RequiresMountsFor=")]
        assert "/data/outbox" in wanted[0].split("=")[1].split()


def test_the_unit_of_the_gateway_asks_for_that_and_waits_half_an_hour() -> None:
    assert "OnFailure=sluice-stuck.service" in (UNITS / "gateway.service.d/10-appliance.conf").read_text()
    assert "SLUICE_STUCK_SECONDS=1800" in (UNITS / "sluice-stuck.service").read_text()


@pytest.mark.parametrize("has_bundle", [True, False])
def test_a_medium_stays_mounted_for_reading_only_while_a_bundle_is_on_it(tmp_path: Path, *, has_bundle: bool) -> None:
    media = tmp_path / "media"
    content = f"mkdir -p {media}/stick1; touch {media}/stick1/notes.txt"
    content += f"; touch {media}/stick1/update.raucb" if has_bundle else ""
    empty = f"rm -f {media}/stick1/*"
    calls = called(tmp_path, "medium", "stick1", programs={"mount": content, "umount": empty}, SLUICE_MEDIA=str(media))
    assert " -o ro,nosuid,nodev,noexec,nosymfollow," in calls[0]
    assert calls[0].endswith(f"/dev/stick1 {media}/stick1")
    assert (calls[1:] == []) is has_bundle
    assert (media / "stick1").exists() is has_bundle


def test_erasing_is_not_stopped_by_the_loss_of_the_partitions_that_it_erases() -> None:
    """They leave the partition table first; systemd then stops their mounts, and all that requires them."""
    unit = (UNITS / "sluice-erase.service").read_text()
    assert "WantsMountsFor=/data" in unit
    assert not [line for line in unit.splitlines() if line.startswith(("Requires", "BindsTo"))]


@pytest.mark.parametrize(("own", "asked"), [(False, "bootchooser on-trial"), (True, "bootchooser-board on-trial")])
def test_a_boards_own_boot_chooser_says_whether_the_system_is_on_trial(
    tmp_path: Path, *, own: bool, asked: str
) -> None:
    programs = {"bootchooser": "exit 0", **({"bootchooser-board": "exit 0"} if own else {})}
    assert called(tmp_path, "on-trial", programs=programs, SLUICE_LIB=str(tmp_path / "bin")) == [asked]
    assert "ExecCondition=/usr/lib/sluice/on-trial" in (UNITS / "sluice-unhealthy.service").read_text()


@dataclass
class Emergency:
    """A device that cannot start completely, over several boots."""

    folder: Path
    on_trial: bool = False
    reset_after: int = 1 << 30  # so many looks for a stick find none
    other: str = "bad"  # how the boot chooser calls slot a, while slot b runs
    chooser: str = "bootchooser"

    def __post_init__(self) -> None:
        (self.folder / "efi").mkdir()

    @property
    def esp(self) -> Path:
        return self.folder / "efi"

    def boot(self) -> tuple[list[str], str]:
        """Returns what was called, and what the console has said."""
        console, looks = self.folder / "console", self.folder / "looks"
        console.write_text("")
        looks.unlink(missing_ok=True)
        scan = (
            f'case "$*" in *--scan) echo x >>{looks}; [ $(wc -l <{looks}) -le {self.reset_after} ] || '
            f"touch {self.esp}/sluice-reset ;; *erase) rm -f {self.esp}/sluice-reset; exec kill $PPID ;; esac"
        )
        state = self.folder / "slot-a"
        if not state.exists():
            state.write_text(f"{self.other}\n")
        chooser = (
            f'case "$*" in get-current) echo b ;; "get-state a") cat {state} ;; '
            f'"try a") echo bad >{state} ;; *) exit 2 ;; esac'
        )
        programs = {
            "on-trial": f"exit {0 if self.on_trial else 1}",
            self.chooser: chooser,
            "gateway": scan,
            "sleep": "true",
            "systemctl": "true",
            "sync": "true",
        }
        environment = {
            "SLUICE_ESP": str(self.esp),
            "SLUICE_DATA": str(self.folder / "data"),
            "SLUICE_LIB": str(self.folder / "bin"),
            "SLUICE_CONSOLE": str(console),
            "SLUICE_GATEWAY": "gateway",
        }
        calls = called(self.folder, "emergency", programs=programs, statuses=(0, -15), **environment)
        return calls, console.read_text()


def test_a_system_on_trial_that_cannot_start_always_starts_again_soon(tmp_path: Path) -> None:
    device = Emergency(tmp_path, on_trial=True)
    for _ in range(5):
        calls, _ = device.boot()
        assert [each for each in calls if each.startswith("sleep")] == ["sleep 60"]
        assert calls[-1] == "systemctl --force reboot"
    assert list(device.esp.iterdir()) == [], "its tries are counted elsewhere"


def test_a_system_that_has_proved_itself_stays_for_half_an_hour_once_three_boots_were_in_vain(tmp_path: Path) -> None:
    device = Emergency(tmp_path)
    waits = []
    for _ in range(5):
        calls, said = device.boot()
        assert calls[-1] == "systemctl --force reboot"
        waits.append(sum(int(each.split()[1]) for each in calls if each.startswith("sleep")))
    assert waits == [60, 60, 60, 1800, 1800]
    assert "a stick with sluice-reset.yaml" in said
    # A boot that has come past the file systems begins to count anew.
    called(
        tmp_path,
        "policy-in-place",
        programs={"install": "true"},
        SLUICE_ESP=str(device.esp),
        SLUICE_POLICY=str(tmp_path / "policy"),
    )
    assert list(device.esp.iterdir()) == []


@pytest.mark.parametrize("chooser", ["bootchooser", "bootchooser-board"])
def test_a_good_system_in_the_other_slot_is_tried_once_before_one_that_cannot_start_is_stayed_with(
    tmp_path: Path, chooser: str
) -> None:
    """Such as when a bit of the kernel image has flipped: the TPM opens nothing to it, and the other image is whole."""
    device = Emergency(tmp_path, other="good", chooser=chooser)
    for _ in range(3):
        assert not [call for call in device.boot()[0] if call.startswith(f"{chooser} try")]
    calls, said = device.boot()
    # In one step, whatever the moment of a power cut; on trial, so that the boot loader comes back by itself.
    assert [call.removeprefix(f"{chooser} ") for call in calls if call.startswith(chooser)] == [
        "get-current",
        "get-state a",
        "try a",
    ]
    assert calls[-2:] == ["sleep 60", "systemctl --force reboot"]
    assert "slot a" in said
    # Come back: the other one could not start, either.
    calls, said = device.boot()
    assert not [call for call in calls if call.startswith(f"{chooser} try")]
    assert calls.count("sleep 30") == 60
    assert "a stick with sluice-reset.yaml" in said


def test_a_system_on_trial_leaves_the_other_slot_to_the_boot_loader(tmp_path: Path) -> None:
    device = Emergency(tmp_path, on_trial=True, other="good")
    (device.esp / "sluice-emergencies").write_text("3")
    assert not [call for call in device.boot()[0] if call.startswith("bootchooser try")]


@pytest.mark.parametrize("content", ["", "many", "17", "-1"])
def test_a_damaged_count_is_no_count(tmp_path: Path, content: str) -> None:
    device = Emergency(tmp_path)
    (device.esp / "sluice-emergencies").write_text(content)
    calls, _ = device.boot()
    assert "sleep 60" in calls


def test_a_stick_with_the_reset_code_ends_it(tmp_path: Path) -> None:
    device = Emergency(tmp_path, reset_after=4)
    (device.esp / "sluice-emergencies").write_text("3")
    calls, _ = device.boot()
    assert calls.count("gateway appliance reset --scan") == 5
    assert calls[-1] == "gateway appliance erase"


def test_a_reset_that_was_asked_for_on_the_boot_partition_comes_first(tmp_path: Path) -> None:
    device = Emergency(tmp_path)
    (device.esp / "sluice-reset").write_text("")
    calls, _ = device.boot()
    assert calls == ["gateway appliance erase"]
    (tmp_path / "data/lib-sluice").mkdir(parents=True)
    (tmp_path / "data/lib-sluice/reset-request.json").write_text("{}")
    assert device.boot()[0] == ["gateway appliance erase"]


def test_media_are_looked_at_again_once_a_claim_was_taken() -> None:
    """One stick may have had both; its unit was left out before, because nobody had claimed the device yet."""
    assert "ConditionPathExists=/data/etc-sluice/gateway.yaml" in (UNITS / "sluice-medium@.service").read_text()
    again = "ExecStopPost=-/usr/bin/systemctl --no-block --all start sluice-medium@*.service"
    assert again in (UNITS / "sluice-provision.service").read_text()


def test_an_approval_that_cannot_be_read_keeps_no_other_from_the_vault(tmp_path: Path) -> None:
    esp, policy = tmp_path / "efi", tmp_path / "policy"
    (esp / "EFI/sluice").mkdir(parents=True)
    policy.mkdir()
    for slot in "abc":
        (esp / f"EFI/sluice/{slot}.policy.json").write_text(slot)
    (esp / "EFI/sluice/a.policy.json").unlink()
    (esp / "EFI/sluice/a.policy.json").mkdir()
    programs = {"install": f'case "$*" in *-d*) ;; *) cp "$7" "{policy}/.new" ;; esac'}
    environment = {"SLUICE_ESP": str(esp), "SLUICE_POLICY": str(policy)}
    called(tmp_path, "policy-in-place", programs=programs, statuses=(1,), **environment)
    assert {file.name: file.read_text() for file in policy.iterdir()} == {"b.policy.json": "b", "c.policy.json": "c"}


@pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed: apt-get install openssh-client"
)
@pytest.mark.parametrize("left", [None, b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl"])
def test_a_device_has_a_host_key_whatever_a_power_cut_has_left_of_one_and_keeps_it(
    tmp_path: Path, left: bytes | None
) -> None:
    key = tmp_path / "ssh_host_ed25519_key"
    if left is not None:
        key.write_bytes(left)
        key.chmod(0o600)
        (tmp_path / "ssh_host_ed25519_key.new").write_bytes(b"")
    subprocess.run([SCRIPTS / "ssh-key", key], check=True)
    made = key.read_bytes()
    assert made.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    subprocess.run([SCRIPTS / "ssh-key", key], check=True)
    assert key.read_bytes() == made
    assert [file.name for file in tmp_path.iterdir()] == [key.name]
    assert "ExecStartPre=/usr/lib/sluice/ssh-key" in (UNITS / "ssh.service.d/10-sluice.conf").read_text()


def hooked(tmp_path: Path, stage: str = "slot-post-install", *, programs: dict[str, str] | None = None) -> int:
    """Run the hook of a bundle for slot b, on a boot partition that has an older system in both slots."""
    bundle, esp, stand_ins = tmp_path / "bundle", tmp_path / "efi", tmp_path / "bin"
    for folder in (bundle, esp / "EFI/sluice", stand_ins):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.efi", "b.efi", "a.policy.json", "b.policy.json", "first.policy.json", "advance-1.policy.json"):
        (bundle / name).write_text(f"new {name}")
        (esp / "EFI/sluice" / name).write_text(f"old {name}")
    (esp / "EFI/sluice/.b.efi.new").write_text("half of one, of a power cut")
    for name, body in (programs or {}).items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{body}\n")
        (stand_ins / name).chmod(0o755)
    hook = (SCRIPTS.parents[3] / "bundle/hook").read_text()
    hook = hook.replace("=/efi/", f"={esp}/").replace("/usr/lib/sluice/policy-in-place", "/nonexistent")
    environment = {
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "RAUC_SLOT_BOOTNAME": "b",
        "RAUC_BUNDLE_MOUNT_POINT": str(bundle),
    }
    return subprocess.run(
        ["sh", "-c", hook, "hook", stage], env=environment, capture_output=True, check=False
    ).returncode


def on_the_boot_partition(tmp_path: Path) -> dict[str, str]:
    return {file.name: file.read_text().split()[0] for file in (tmp_path / "efi/EFI/sluice").iterdir()}


OF_THE_SLOT = {"b.efi", "b.policy.json", "first.policy.json", "advance-1.policy.json"}


def test_a_bundle_brings_the_kernel_image_of_its_slot_and_leaves_that_of_the_system_that_runs(tmp_path: Path) -> None:
    assert hooked(tmp_path) == 0
    there = on_the_boot_partition(tmp_path)
    assert {name for name, what in there.items() if what == "new"} == OF_THE_SLOT
    assert {name for name, what in there.items() if what == "old"} == {"a.efi", "a.policy.json"}
    assert len(there) == 6, "what a power cut has left is gone"


@pytest.mark.parametrize("stage", ["slot-pre-install", "install-check"])
def test_at_other_stages_of_an_installation_the_hook_does_nothing(tmp_path: Path, stage: str) -> None:
    assert hooked(tmp_path, stage) == 0
    assert "new" not in on_the_boot_partition(tmp_path).values()


@pytest.mark.parametrize(
    "programs",
    [
        pytest.param({"cp": 'printf "new ha" >"$2"; exit 1'}, id="the boot partition is full"),
        pytest.param({"sync": "exit 1"}, id="it cannot be written down"),
        pytest.param({"cp": 'printf "torn" >"$2"'}, id="what is there is something else"),
    ],
)
def test_an_installation_fails_where_the_kernel_image_is_not_whole_on_the_boot_partition(
    tmp_path: Path, programs: dict[str, str]
) -> None:
    """RAUC then leaves the slot marked bad, and boots the other one."""
    assert hooked(tmp_path, programs=programs) != 0
    assert on_the_boot_partition(tmp_path)["a.efi"] == "old"
