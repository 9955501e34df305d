"""What a person hands to a build is looked at before the build takes its time, and nothing wrong goes into an image."""

import dataclasses
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from image.builder import boards, debian, formats, layers, turns
from image.builder.boards import Board, Part, check_vendor
from image.builder.chroot import Tree
from image.builder.cli import main, registers
from image.builder.errors import BuildError, MissingError
from image.builder.keys import check_folder, vendor_keys
from image.builder.progress import Progress

REPO = Path(__file__).parents[2]
IMAGE = REPO / "image"


class HostTools(Tree):
    """The programs of this machine in place of those of a tools tree."""

    def run(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> None:
        self.progress.run(self._shown(argv, binds))

    def capture(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> str:
        return self.progress.capture(self._shown(argv, binds))

    @staticmethod
    def _shown(argv: Sequence[str | Path], binds: Mapping[Path, str] | None) -> list[str]:
        words = [str(each) for each in argv]
        for source, target in (binds or {}).items():
            words = [each.replace(target, str(source)) for each in words]
        return words


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    return HostTools(Path("/"), Progress(tmp_path_factory.mktemp("log") / "log"))


@pytest.fixture(scope="module")
def good_keys(tools: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "keys"
    assert vendor_keys(folder, tools, may_make=True).made
    return folder


@pytest.fixture(scope="module")
def other_keys(tools: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor_keys(tmp_path_factory.mktemp("other") / "keys", tools, may_make=True).folder


def test_new_keys_fit_together_and_are_kept_the_next_time(good_keys: Path, tools: Tree) -> None:
    before = (good_keys / "db.key").read_bytes()
    assert not vendor_keys(good_keys, tools, may_make=True).made
    assert (good_keys / "db.key").read_bytes() == before
    assert not list(good_keys.parent.glob("keys?*"))


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ("db.crt", "db.crt does not belong to db.key"),
        ("pcr.pub", "pcr.pub does not belong to pcr.key"),
        ("policy.pub", "policy.pub does not belong to policy.key"),
        ("bundle.crt", "bundle.crt does not belong to bundle.key"),
        ("ca.crt", "bundle.crt does not hold against ca.crt: error"),
        ("PK.crt", "PK.crt does not belong to PK.key"),
    ],
)
def test_keys_of_which_devices_would_trust_another_half_are_refused(
    foreign: str, told: str, good_keys: Path, other_keys: Path, tools: Tree
) -> None:
    folder = Path(shutil.copytree(good_keys, good_keys.parent / f"with-another-{foreign}"))
    shutil.copy(other_keys / foreign, folder / foreign)
    with pytest.raises(MissingError, match=told):
        vendor_keys(folder, tools, may_make=False)


def test_all_that_is_wrong_with_keys_is_told_at_once(good_keys: Path, tools: Tree, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good_keys, tmp_path / "keys"))
    (folder / "db.key").write_text("")
    (folder / "pcr.pub").write_text("no key")
    # Kinds that nothing on a device could check.
    for name, kind in (("policy", "ED25519"),):
        subprocess.run(["openssl", "genpkey", "-algorithm", kind, "-out", folder / f"{name}.key"], check=True)
        argv: list[str | Path] = ["openssl", "pkey", "-in", folder / f"{name}.key", "-pubout"]
        subprocess.run([*argv, "-out", folder / f"{name}.pub"], check=True)
    argv = ["openssl", "pkey", "-in", good_keys / "bundle.key", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*argv, "-out", folder / "bundle.key"], check=True)
    with pytest.raises(MissingError) as caught:
        vendor_keys(folder, tools, may_make=False)
    told = str(caught.value)
    assert "db.key: no private key in PEM" in told
    assert "pcr.pub: cannot be read" in told
    assert "policy.key: an ECDSA key on P-256 is wanted" in told
    assert "bundle.key: no private key in PEM without a password" in told
    assert "ca.crt" not in told


def test_a_folder_without_keys_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder of keys"):
        check_folder(tmp_path / "typo", may_make=False)
    (tmp_path / "db.key").write_text("")
    with pytest.raises(MissingError, match=r"lacks db\.crt, pcr\.key"):
        check_folder(tmp_path, may_make=True)
    (tmp_path / "db.key").rename(tmp_path / "notes")
    with pytest.raises(MissingError, match=r"lacks db\.key"):
        check_folder(tmp_path, may_make=True)
    check_folder(tmp_path / "new", may_make=True)


def test_two_builds_that_make_keys_at_once_end_with_the_same(good_keys: Path, tools: Tree, tmp_path: Path) -> None:
    folder = tmp_path / "keys"

    class Slower(HostTools):
        """Another build is done just before this one."""

        def run(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> None:
            super().run(argv, binds)
            shutil.copytree(good_keys, folder)

    assert not vendor_keys(folder, Slower(Path("/"), tools.progress), may_make=True).made
    assert (folder / "ca.key").read_bytes() == (good_keys / "ca.key").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["foo"], "'foo' is none"),
        (["7=zz"], "'7=zz' is none"),
        (["7=" + "0" * 40], "64 hexadecimal digits"),
        (["24=" + "0" * 64], "0 to 23"),
        (["11=" + "0" * 64], "by itself"),
        (["012=" + "0" * 64], "is none"),
        (["7=" + "0" * 64, "07=" + "1" * 64], "twice"),
    ],
)
def test_registers_at_which_no_vault_would_open_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(BuildError, match=told):
        registers(words)


def test_registers_are_written_as_the_vault_compares_them() -> None:
    assert registers(["7=" + "AB" * 32, "04=" + "0" * 64]) == {"7": "ab" * 32, "4": "0" * 64}


def test_a_wrong_register_is_an_error_of_the_command_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["uefi-amd64", "--output", str(tmp_path / "out"), "--pcr", "foo"]) == 1
    assert "image/build: --pcr 'foo'" in capsys.readouterr().err


@pytest.mark.parametrize("generation", ["0", "-3"])
def test_a_generation_that_no_counter_has_is_refused(
    generation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "out"), "--generation", generation]) == 1
    assert f"--generation {generation}: the vault's counter begins with 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["uefi-amd64/", "../boards/uefi-amd64", "./uefi-amd64"])
def test_a_path_to_a_target_is_not_its_name(name: str) -> None:
    # It would be part of the name that bundles and devices must share, and nothing could be installed there.
    with pytest.raises(BuildError, match="no target"):
        boards.load(IMAGE, name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\n", "no archive in it"),
        ("", "no archive in it"),
        ("deb [arch={architecture}] http://mirror.example/debian trixie main\n", r"\{arch\} alone"),
        ("deb [arch={] http://mirror.example/debian trixie main\n", r"\{arch\} alone"),
    ],
)
def test_sources_from_which_nothing_could_be_had_are_refused(text: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    if text is not None:
        file.write_text(text)
    with pytest.raises(MissingError, match=told):
        debian.own_sources(file)


def test_sources_may_name_the_architecture(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text("# ours\ndeb [arch={arch}] http://mirror.example/debian trixie main\n")
    assert debian.own_sources(file) == ("deb [arch={arch}] http://mirror.example/debian trixie main",)


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(44)


def package(*members: str) -> bytes:
    made = b"!<arch>\n"
    for name in members:
        content = b"content"
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n"
    return made


WHOLE = package("debian-binary", "control.tar.xz", "data.tar.xz")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("libedgetpu.so.1", elf(62), "made for amd64, wanted is arm64"),
        ("nvbootctrl", elf(40), r"another machine \(ELF 40\)"),
        ("nvbootctrl", elf(183)[:30], "cut off"),
        ("gasket-apex.ko", b"apex", "no ELF file"),
        ("libedgetpu.so.1", b"edgetpu", "no ELF file"),
        ("kernel.deb", b"debian-binary\n", "no Debian package"),
        ("kernel.deb", WHOLE[:-4], "cut off"),
        ("kernel.deb", package("debian-binary", "control.tar.xz"), "without data"),
        ("kernel.deb", WHOLE.replace(b"7         `\n", b"x         `\n"), "no header of a member at byte 8"),
        ("board.dtb", b"", "no device tree"),
        ("board.dtb", b"/dts-v1/; / { };" + bytes(40), "no device tree"),
        ("board.dtb", b"\xd0\x0d\xfe\xed" + struct.pack(">I", 4096) + bytes(64), "cut off: 72 of 4096 bytes"),
    ],
)
def test_a_part_that_no_board_of_the_target_could_use_is_refused(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for required in (True, False):
        with pytest.raises(MissingError, match=f"{name}: .*{told}"):
            check_vendor(board(Part(name, "a part", "somewhere", required=required)), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("libedgetpu.so.1", elf(183)),
        ("kernel.deb", WHOLE),
        ("board.dtb", b"\xd0\x0d\xfe\xed" + struct.pack(">I", 64) + bytes(56)),
    ],
)
def test_a_part_of_its_kind_is_taken(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    part = Part(name, "a part", "somewhere")
    assert check_vendor(board(part), tmp_path) == {part: tmp_path / name}


def test_a_folder_of_parts_that_is_not_there_and_a_folder_in_place_of_a_part_are_told(tmp_path: Path) -> None:
    part = Part("gasket-apex.ko", "a driver", "somewhere", required=False)
    with pytest.raises(MissingError, match="typo: no such folder; VENDOR=FOLDER"):
        check_vendor(board(part), tmp_path / "typo")
    (tmp_path / part.path).mkdir()
    with pytest.raises(MissingError, match="is no file"):
        check_vendor(board(part), tmp_path)


def test_a_kernel_module_for_another_kernel_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gasket-apex.ko"
    part = Part(file.name, "a driver", "somewhere")
    file.write_bytes(
        elf(183) + b"license=GPL\0vermagic=6.12.57+deb13-arm64 SMP preempt mod_unload aarch64\0name=apex\0"
    )
    assert formats.module_kernel(file.read_bytes()) == "6.12.57+deb13-arm64"
    layers.check_modules("6.12.57+deb13-arm64", {part: file})
    with pytest.raises(MissingError, match=r"built for kernel 6\.12\.57\+deb13-arm64, .* by 6\.12\.63"):
        layers.check_modules("6.12.63+deb13-arm64", {part: file})
    file.write_bytes(elf(183))
    with pytest.raises(MissingError, match="that it does not name"):
        layers.check_modules("6.12.63+deb13-arm64", {part: file})


def board(part: Part) -> Board:
    return dataclasses.replace(boards.load(IMAGE, "coral-devboard"), vendor=(part,))


def test_a_second_build_into_the_same_folder_is_refused_and_leaves_the_log_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "build.log").write_text("of the first")
    with turns.only_one(out):
        assert main(["--output", str(out), "--offline"]) == 2
    assert "another build writes to" in capsys.readouterr().err
    assert (out / "build.log").read_text() == "of the first"
    with turns.only_one(out):
        pass  # it was let go


def test_builds_fill_a_cache_one_after_the_other_and_the_one_that_waits_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    entered = threading.Event()

    class Heard(Progress):
        """Lets the first build go on when the second one has said that it waits."""

        def say(self, text: str) -> None:
            super().say(text)
            assert not entered.is_set()
            os.close(handle)

    with turns.in_turn(tmp_path, Heard(tmp_path / "log")):
        entered.set()
    assert "another build fills" in capsys.readouterr().err


def test_the_cache_cannot_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUICE_IMAGE_CACHE", str(tmp_path))
    assert main(["--output", str(tmp_path)]) == 1
    assert "both the cache" in capsys.readouterr().err
