"""C23: the TPM dies, hangs, locks itself, fills up, or the machine's state changes.

A model that runs goes on; nothing new is unsealed; nothing is retried into a lockout; what was killed has cost nothing.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.errors import GatewayError
from gateway.vault.errors import KeyStoreUnavailableError, PolicyRefusedError
from gateway.vault.policy import FirstCount
from gateway.vault.tpm.codes import NV_SPACE, TpmResponseError
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.vault import Vault
from gateway.vault.weights import SealedWeights
from gateway.wire.manifest import Artefact
from tests.chaos.experiment import Experiment
from tests.gateway.vault import kills
from tests.gateway.vault.device import Device, plain_release, some_weights
from tests.gateway.vault.vault_victim import BEGINS
from tests.simulators import swtpm
from tests.simulators.swtpm import Swtpm

pytestmark = pytest.mark.skipif(bool(swtpm.missing()), reason=swtpm.missing())

DEADLINE_SECONDS = 1.0
OPERATIONS = ("check", "rotate", "reseal")
PATIENT_SECONDS = 60.0  # where it matters what a TPM answers, and not when: the machine may be busy with other work
_LOCKOUT_COUNTER = 0x20E  # TPM_PT_LOCKOUT_COUNTER
_TRANSIENT, _SESSIONS = 0x8000_0000, 0x0200_0000


class Site:
    """A device with a vault, a sealed release, and weights that are open as a running model's are."""

    def __init__(self, root: Path, tpm: Swtpm) -> None:
        self.root = root
        self.tpm = tpm
        self.seconds = DEADLINE_SECONDS
        self.private = generate_private_key(SECP256R1())
        self.vault = self.device.initialised()
        self.weights = some_weights(300_000)
        plain, artefacts = plain_release(root / "plain", {"model.tflite": self.weights})
        self.artefact: Artefact = artefacts[0]
        self.release = self.vault.import_release(plain).directory
        self.running = self.open()

    @property
    def device(self) -> Device:
        """The device as a new process sees it; the TPM may have another port after a restart."""
        return Device(self.root, self.tpm.tcti, self.private, seconds=self.seconds)

    def reopened(self) -> Vault:
        return self.device.vault()

    def open(self) -> SealedWeights:
        return self.reopened().open_weights(self.release, self.artefact)

    def model_goes_on(self) -> None:
        assert bytes(self.running.view) == self.weights
        assert Path(self.running.path).read_bytes() == self.weights

    def opens_again(self) -> None:
        with self.open() as weights:
            assert bytes(weights.view) == self.weights


@pytest.fixture
def site(experiment: Experiment) -> Iterator[Site]:
    with Swtpm(experiment.directory) as tpm:
        made = Site(experiment.directory, tpm)
        yield made
        made.running.close()


def lockout_counter(connection: Connection) -> int:
    def work(tpm: Tpm) -> int:
        answer = tpm.esys.get_capability(tpm.pytss.TPM2_CAP.TPM_PROPERTIES, _LOCKOUT_COUNTER, 1)
        properties = answer[1].data.tpmProperties
        return int(properties[0].value)

    return connection.call("looking", work)


def test_c23_a_dead_tpm_stops_nothing_that_runs_and_gives_nothing_new_out(site: Site, experiment: Experiment) -> None:
    site.tpm.kill()
    started = time.monotonic()
    for _ in range(20):  # what restarted components would do
        with pytest.raises(KeyStoreUnavailableError):
            site.open()
    experiment.log("refused", seconds=time.monotonic() - started)
    site.model_goes_on()
    found = site.reopened().status()
    assert found.initialised
    assert not found.store.ready
    site.tpm.start()
    site.opens_again()


def test_c23_a_tpm_that_hangs_costs_no_more_than_the_deadline(site: Site, experiment: Experiment) -> None:
    vault = site.reopened()
    with site.tpm.stalled():
        started = time.monotonic()
        with pytest.raises(KeyStoreUnavailableError, match="did not answer within"):
            vault.open_weights(site.release, site.artefact)
        first = time.monotonic() - started
        with pytest.raises(KeyStoreUnavailableError, match="has not answered for"):
            vault.open_weights(site.release, site.artefact)
        experiment.log("given_up", first=first, all=time.monotonic() - started)
        assert first < DEADLINE_SECONDS + 2
        assert time.monotonic() - started < DEADLINE_SECONDS + 3
        site.model_goes_on()
    deadline = time.monotonic() + 10
    while True:  # the left-behind call ends by itself, and then everything works
        try:
            vault.open_weights(site.release, site.artefact).close()
            break
        except KeyStoreUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_c23_a_changed_boot_state_gets_no_key_and_stops_nothing_that_runs(site: Site) -> None:
    site.opens_again()  # the control: before the change
    site.tpm.extend(11, b"something else was started".ljust(32))
    for _ in range(40):
        with pytest.raises(PolicyRefusedError, match="PCR 11 is"):
            site.open()
    site.model_goes_on()
    assert lockout_counter(site.device.connection) == 0
    site.device.approve_present_state("image-2")
    site.opens_again()


def wrong_password(tpm: Tpm) -> None:
    """What another program does with an object that counts: it guesses."""
    pytss, esys = tpm.pytss, tpm.esys
    attributes = pytss.TPMA_OBJECT
    public = pytss.TPM2B_PUBLIC.parse(
        "keyedhash", objectAttributes=attributes.FIXEDTPM | attributes.FIXEDPARENT | attributes.USERWITHAUTH
    )
    sensitive = pytss.TPM2B_SENSITIVE_CREATE(
        pytss.TPMS_SENSITIVE_CREATE(userAuth=b"right", data=pytss.TPM2B_SENSITIVE_DATA(b"s"))
    )
    root = esys.tr_from_tpmpublic(0x8100_0001)
    private, created, *_ = esys.create(root, sensitive, public)
    with tpm.flushed(esys.load(root, private, created)) as item:
        esys.tr_set_auth(item, b"wrong")
        esys.unseal(item)


def test_c23_a_tpm_that_is_locked_out_by_another_program_still_gives_the_key(site: Site) -> None:
    codes: set[int] = set()
    for _ in range(10):
        try:
            site.device.connection.call("guessing", wrong_password)
        except TpmResponseError as error:
            codes.add(error.code)
    assert 0x921 in codes, codes  # the control: the TPM is locked for whatever counts
    site.opens_again()
    site.reopened().reseal()
    site.opens_again()


def test_c23_a_full_tpm_says_so_and_keeps_what_it_has(site: Site, experiment: Experiment) -> None:
    def fill(tpm: Tpm) -> dict[str, int]:
        """Define indices until nothing fits: large ones, small ones, and counters, for which TPMs keep some room."""
        pytss, made = tpm.pytss, {"large": 0, "small": 0, "counter": 0}
        index = 0x0180_0100
        for kind, attributes, size in (("large", 0x6_0006, 1024), ("small", 0x6_0006, 1), ("counter", 0x206_0014, 8)):
            while True:
                index += 1
                area = pytss.TPMS_NV_PUBLIC(
                    nvIndex=index,
                    nameAlg=pytss.TPM2_ALG.SHA256,
                    attributes=attributes,
                    authPolicy=b"",
                    dataSize=size,
                )
                try:
                    tpm.esys.nv_define_space(None, pytss.TPM2B_NV_PUBLIC(nvPublic=area), pytss.ESYS_TR.OWNER)
                    if kind == "counter":
                        tpm.esys.nv_increment(tpm.esys.tr_from_tpmpublic(index))
                except tpm.library.failure as error:
                    if int(error.rc) != NV_SPACE:  # type: ignore[attr-defined]  # untyped library
                        raise
                    break
                made[kind] += 1
        return made

    made = Connection(site.tpm.tcti, seconds=60).call("filling", fill)
    experiment.log("filled", **made)
    assert all(made.values())
    site.opens_again()
    site.model_goes_on()
    # A second vault needs a counter of its own, and there is no room for one.
    other = Device(experiment.directory, site.tpm.tcti, generate_private_key(SECP256R1()), name="other", seconds=20)
    other.deliver(FirstCount(name="first", counter_index=0x0180_0010))
    with pytest.raises(TpmResponseError, match="no room left in its memory"):
        other.vault().initialise()
    assert not other.vault().status().initialised


def settled(site: Site) -> None:
    """What must hold after any kill: everything opens, nothing is left in the TPM, nothing was counted."""
    site.seconds = PATIENT_SECONDS
    site.reopened().check()
    site.opens_again()
    connection = site.device.connection
    assert connection.call("looking", lambda tpm: (tpm.handles(_TRANSIENT), tpm.handles(_SESSIONS))) == ([], [])
    assert lockout_counter(connection) == 0


def test_c23_control_a_single_try_that_counts_is_seen(site: Site) -> None:
    settled(site)
    with pytest.raises(TpmResponseError):
        site.device.connection.call("guessing", wrong_password)
    with pytest.raises(AssertionError):
        settled(site)


@pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())
def test_c23_control_a_key_that_is_cut_short_in_place_is_seen(site: Site) -> None:
    settled(site)
    for file in sorted((site.device.state / "vault").rglob("*")):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(GatewayError):
        settled(site)


@pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())
@pytest.mark.parametrize("change", ["rotate", "reseal"])
def test_c23_killed_in_front_of_any_call_of_a_change_of_keys(site: Site, experiment: Experiment, change: str) -> None:
    _ = site.device.settings  # writes the policy key where the victim looks
    # Each command to the TPM is a write; the long form takes what is left of what changes the disk as well.
    calls: tuple[str, ...] = ("rename", "fsync", "write") if change == "rotate" else ("rename", "fsync")
    if experiment.long:
        calls = (*kills.DURABLE_CALLS, "write")
    points = 0
    for point in kills.kill_points(kills.victim(change, experiment.directory, site.tpm.tcti), calls, limit=400):
        experiment.log("killed", at=point)
        settled(site)
        points += 1
    assert points >= 18
    site.model_goes_on()


def made_after_all(device: Device) -> None:
    """What must hold after making a vault was killed anywhere: the next try goes on from what is there."""
    vault = device.vault()
    vault.initialise()
    vault.check()
    assert vault.status().store.counter == 1
    left = device.connection.call("looking", lambda tpm: (tpm.handles(_TRANSIENT), tpm.handles(_SESSIONS)))
    assert left == ([], [])
    assert lockout_counter(device.connection) == 0


@pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())
def test_c23_killed_in_front_of_any_call_of_making_a_vault(experiment: Experiment) -> None:
    """Storage root key, counter, vault key: each time with a TPM that never had any of it."""
    private, points = generate_private_key(SECP256R1()), 0
    calls: dict[str, int] = {"rename": 2, "write": 12}  # of so many calls one; each command to the TPM is a write
    if experiment.long:
        calls = dict.fromkeys((*kills.DURABLE_CALLS, "write"), 1)
    for call, step in calls.items():
        for number in range(1, 1000, step):
            directory = experiment.directory / f"{call}-{number}"
            directory.mkdir()
            with Swtpm(directory) as tpm:
                device = Device(directory, tpm.tcti, private, seconds=PATIENT_SECONDS)
                _ = device.settings  # writes the policy key where the victim looks
                device.deliver(FirstCount(name="first"))
                device.approve_present_state()
                killed = kills.run_killed_at(kills.victim("init", directory, tpm.tcti), call, number)
                experiment.log("killed", at=f"{call} {number}", killed=killed)
                made_after_all(device)
            points += killed
            if not killed:
                break
    assert points >= 6


def begun(site: Site, operation: str) -> "subprocess.Popen[str]":
    """Start an operation in a process of its own, and wait until it begins: before that there is nothing to be lost."""
    command = kills.victim(operation, site.root, site.tpm.tcti)
    command[1:2] = ["-m", "tests.gateway.vault.vault_victim"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == BEGINS
    return process


def seconds_of(site: Site, operation: str) -> float:
    """How long an operation takes that nobody kills, on this machine with what it does beside."""
    process = begun(site, operation)
    started = time.monotonic()
    assert process.wait(PATIENT_SECONDS) == 0
    process.communicate()
    return time.monotonic() - started


def test_c23_killed_at_any_moment_no_try_is_counted_and_nothing_is_lost(site: Site, experiment: Experiment) -> None:
    _ = site.device.settings
    cycles, killed, lengths = experiment.scaled(20, 1000), 0, dict.fromkeys(OPERATIONS, 0.0)
    for cycle in range(cycles):
        if cycle % 50 == 0:
            lengths = {operation: seconds_of(site, operation) for operation in OPERATIONS}
            experiment.log("measured", **lengths)
        operation = experiment.random.choice(OPERATIONS)
        with begun(site, operation) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(experiment.random.uniform(0.0, lengths[operation]))
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed += process.returncode == -signal.SIGKILL
        experiment.log("killed", cycle=cycle, operation=operation, returncode=process.returncode)
        settled(site)
    assert killed >= cycles // 3  # the others had finished before
    site.model_goes_on()
