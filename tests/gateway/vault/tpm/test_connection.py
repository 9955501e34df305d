"""Calls to the TPM end in time, and leave nothing behind."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from structlog.testing import capture_logs

from gateway.vault.errors import KeyStoreError, KeyStoreUnavailableError, VaultConfigError
from gateway.vault.tpm import library as library_module
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.tpm.library import TpmLibrary, tpm_library
from tests.simulators.swtpm import Swtpm
from tests.simulators.waiting import wait_for


def random_bytes(tpm: Tpm) -> int:
    return len(bytes(tpm.esys.get_random(8)))


def test_a_tpm_that_hangs_is_given_up_at_the_deadline_and_refused_at_once_afterwards(tpm: Swtpm) -> None:
    connection = Connection(tpm.tcti, seconds=0.5)
    assert connection.call("trying", random_bytes) == 8
    with capture_logs() as logs:
        with tpm.stalled():
            started = time.monotonic()
            with pytest.raises(KeyStoreUnavailableError, match=r"trying: .* did not answer within 0\.5 s"):
                connection.call("trying", random_bytes)
            assert 0.4 < time.monotonic() - started < 3
            for _ in range(20):
                started = time.monotonic()
                with pytest.raises(KeyStoreUnavailableError, match="has not answered for"):
                    connection.call("again", random_bytes)
                assert time.monotonic() - started < 0.2
            assert sum(thread.name == "tpm" for thread in threading.enumerate()) == 1
        wait_for(lambda: "tpm_answers_again" in [entry["event"] for entry in logs], what="it answers again")
    assert connection.call("trying", random_bytes) == 8
    assert [entry["event"] for entry in logs] == ["tpm_hangs", "tpm_answers_again"]


def test_without_a_deadline_a_call_hangs_as_long_as_the_tpm_does(tpm: Swtpm) -> None:
    """The control: this is what the library does by itself."""
    esys = tpm_library().pytss.ESAPI(tpm.tcti)
    answered = threading.Event()

    def bare() -> None:
        esys.get_random(8)
        answered.set()

    with tpm.stalled():
        thread = threading.Thread(target=bare)
        thread.start()
        assert not answered.wait(1.5)
    assert answered.wait(10)
    thread.join()
    esys.close()


def test_a_tpm_that_was_killed_and_came_back_is_used_again(tpm: Swtpm) -> None:
    connection = Connection(tpm.tcti, seconds=5)
    assert connection.call("trying", random_bytes) == 8
    tpm.kill()
    with pytest.raises(KeyStoreUnavailableError, match="trying: the TPM at swtpm:host=127"):
        connection.call("trying", random_bytes)
    tpm.start()
    assert Connection(tpm.tcti, seconds=5).call("trying", random_bytes) == 8


def test_a_tpm_that_dies_in_the_middle_of_a_call_is_told_as_unavailable(tpm: Swtpm) -> None:
    def work(opened: Tpm) -> None:
        random_bytes(opened)
        tpm.kill()
        random_bytes(opened)

    with pytest.raises(KeyStoreUnavailableError, match="does not answer"):
        Connection(tpm.tcti, seconds=5).call("trying", work)


def leak(tpm: Tpm) -> None:
    """What a program that is killed leaves: an object and a session in the TPM."""
    pytss = tpm.pytss
    tpm.esys.create_primary(None, "ecc")
    none = pytss.ESYS_TR.NONE
    tpm.esys.start_auth_session(none, none, pytss.TPM2_SE.POLICY, None, pytss.TPM2_ALG.SHA256)


def test_slots_that_a_killed_program_left_taken_are_freed(tpm: Swtpm) -> None:
    connection = Connection(tpm.tcti, seconds=5)
    for _ in range(10):
        connection.call("leaking", leak)
    assert connection.call("looking", lambda opened: opened.handles(0x8000_0000)) == []


def test_without_freeing_them_the_slots_are_soon_used_up(tpm: Swtpm) -> None:
    """The control: behind a resource manager nothing is freed here, and swtpm has none."""

    class Unswept(Connection):
        _is_managed = True

    connection = Unswept(tpm.tcti, seconds=5)

    def leak_often() -> None:
        for _ in range(10):
            connection.call("leaking", leak)

    with pytest.raises(KeyStoreUnavailableError, match="no slot left"):
        leak_often()


def use_a_slot(tpm: Tpm) -> None:
    made = tpm.esys.create_primary(None, "ecc")[0]
    with tpm.flushed(made):
        for _ in range(3):
            tpm.esys.read_public(made)


def failures_at_once(kind: type[Connection], tcti: str) -> int:
    """Use several connections at the same time; returns how many of the calls have failed."""
    failed: list[str] = []

    def often() -> None:
        connection = kind(tcti, seconds=20)
        for _ in range(15):
            try:
                connection.call("using a slot", use_a_slot)
            except KeyStoreError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


def test_connections_take_turns_where_no_resource_manager_keeps_them_apart(tpm: Swtpm) -> None:
    class Careless(Connection):
        @contextlib.contextmanager
        def _alone(self, what: str) -> Iterator[None]:
            yield

    assert failures_at_once(Connection, tpm.tcti) == 0
    assert failures_at_once(Careless, tpm.tcti) > 0


def test_another_program_that_keeps_the_tpm_is_told_as_busy(tpm: Swtpm) -> None:
    connection = Connection(tpm.tcti, seconds=0.4)
    other = Connection(tpm.tcti, seconds=20)
    inside, leave = threading.Event(), threading.Event()

    def stay(opened: Tpm) -> None:
        inside.set()
        leave.wait(20)

    thread = threading.Thread(target=lambda: other.call("staying", stay))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(KeyStoreUnavailableError, match="busy with another program"):
        connection.call("trying", random_bytes)
    leave.set()
    thread.join()
    assert connection.call("trying", random_bytes) == 8


def test_who_has_waited_for_his_turn_has_all_of_his_time_and_blames_no_tpm(tpm: Swtpm) -> None:
    """A chip is slow, and several threads use it: the last one waits almost as long as a call may take."""
    now, begun = 0.0, []

    def library() -> TpmLibrary:
        begun.append(threading.current_thread())
        return tpm_library()

    connection = Connection(tpm.tcti, seconds=10.0, clock=lambda: now, library=library)
    inside, leave = threading.Event(), threading.Event()

    def stay(_: Tpm) -> None:
        inside.set()
        leave.wait(20)

    def take_a_while(opened: Tpm) -> int:
        time.sleep(1.0)
        return random_bytes(opened)

    with capture_logs() as logs, ThreadPoolExecutor(2) as pool:
        first = pool.submit(connection.call, "staying", stay)
        assert inside.wait(10)
        second = pool.submit(connection.call, "waiting", take_a_while)
        wait_for(lambda: len(begun) == 2, what="the second call waits")
        time.sleep(0.2)
        now = 9.9  # what was left of its time if waiting counted would be less than the call takes
        leave.set()
        first.result(10)
        assert second.result(20) == 8
    assert logs == []


def test_an_error_of_the_work_itself_reaches_the_caller(tpm: Swtpm) -> None:
    def work(_: Tpm) -> None:
        raise KeyStoreError("said by the work")

    with pytest.raises(KeyStoreError, match=r"^said by the work$"):
        Connection(tpm.tcti, seconds=5).call("trying", work)


def test_a_machine_without_a_tpm_is_told_so(tmp_path: Path) -> None:
    connection = Connection(f"device:{tmp_path}/tpmrm0", seconds=1)
    with pytest.raises(KeyStoreError, match=r"there is no .*/tpmrm0: switch the TPM on"):
        connection.call("trying", random_bytes)


def test_an_unknown_interface_names_the_package_to_look_for() -> None:
    with pytest.raises(KeyStoreUnavailableError, match="libtss2-tcti-nosuch0"):
        Connection("nosuch:x=1", seconds=2).call("trying", random_bytes)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            ModuleNotFoundError("No module named 'tpm2_pytss'", name="tpm2_pytss"),
            "apt-get install libtss2-dev pkg-config",
        ),
        (ImportError("libtss2-esys.so.0: cannot open shared object file"), "apt-get install libtss2-esys-3.0.2-0"),
        (ImportError("libtss2-fapi.so.1: cannot open shared object file"), "apt-get install libtss2-fapi1"),
        (OSError("something else"), "apt-get install libtss2-dev"),
    ],
)
def test_a_missing_library_names_the_package(failure: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> ModuleType:
        raise failure

    monkeypatch.setattr(library_module, "import_module", broken)
    tpm_library.cache_clear()
    try:
        with pytest.raises(VaultConfigError, match=said):
            Connection("device", seconds=1).call("trying", random_bytes)
    finally:
        tpm_library.cache_clear()


def test_a_late_answer_at_the_very_deadline_is_not_lost() -> None:
    """The worker finishes between the time-out and the note that it hangs."""

    class AnsweredMeanwhile:
        def done(self) -> bool:
            return True

    connection = Connection("device", seconds=1)
    assert connection._hangs("trying", AnsweredMeanwhile()) is False  # type: ignore[arg-type]  # a stand-in
    assert connection._hanging_since is None


def test_nothing_is_imported_before_a_tpm_is_asked_for() -> None:

    code = "import sys, gateway.vault.vault, gateway.commands.vault; print('tpm2_pytss' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
