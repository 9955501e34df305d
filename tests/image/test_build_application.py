"""The application of the image: which wheels, unpacked how, and what is said of them."""

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from image.builder import sbom, wheels
from image.builder.boards import load
from image.builder.errors import BuildError
from image.builder.lock import Pin, closure, read_lock, requirement_name, seeds
from image.builder.release import Release, of_repository

REPO = Path(__file__).parents[2]


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wheel(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = (), lie: str = "") -> Path:
    """A wheel as they are published; the RECORD is wrong about the file `lie`."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": b"Wheel-Version: 1.0\n"}
    rows = [
        f"{each},sha256={digest(b'?' if each == lie else content)},{len(content)}" for each, content in files.items()
    ]
    target = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for each, content in files.items():
            archive.writestr(each, content)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return target


def test_the_real_lock_is_read_and_has_all_that_the_device_asks_for() -> None:
    pins = read_lock(REPO / "requirements/runtime.txt")
    assert set(seeds(REPO / "pyproject.toml", "device")) <= pins.keys()
    assert all("--hash=sha256:" in line for pin in pins.values() for line in pin.lines[1:])
    assert "colorama" not in pins  # for Windows alone


def test_only_what_the_device_leads_to_is_taken_from_the_lock() -> None:
    pins = {name: Pin(name, "1", ()) for name in ("a", "b", "c", "cloud-thing")}
    requires = {
        "a": ["b>=1", "cloud-thing ; extra == 'cloud'"],
        "b": ["c", "tomli; python_version < '3.11'"],
        "c": ["a"],
    }
    asked: list[str] = []

    def fetch(some: list[Pin]) -> dict[str, list[str]]:
        asked.extend(pin.name for pin in some)
        return {pin.name: requires[pin.name] for pin in some}

    assert sorted(closure(["a"], pins, fetch)) == ["a", "b", "c"]
    assert asked == ["a", "b", "c"]


def test_a_package_that_is_not_locked_stops_the_build() -> None:
    with pytest.raises(BuildError, match="make lock"):
        closure(["unheard-of"], {}, lambda _some: {})


def test_names_are_compared_as_the_index_does() -> None:
    assert requirement_name("Prometheus_Client[extra]>=0.22 ; x") == "prometheus-client"


def test_a_wheel_is_unpacked_without_its_scripts_and_with_a_true_record(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": b"",
        "pkg-1.0.data/scripts/tool": b"#!/bin/sh\n",
        "pkg-1.0.data/purelib/more.py": b"x = 1\n",
    }
    site = tmp_path / "site"
    wheels.unpack(wheel(tmp_path, "pkg", files), site)
    assert sorted(str(file.relative_to(site)) for file in site.rglob("*.py")) == ["more.py", "pkg/__init__.py"]
    record = (site / "pkg-1.0.dist-info/RECORD").read_text()
    assert f"more.py,sha256={digest(b'x = 1' + bytes([10]))},6" in record
    assert not list(site.rglob("tool"))


def test_a_wheel_whose_content_is_not_what_its_record_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="RECORD"):
        wheels.unpack(wheel(tmp_path, "pkg", {"pkg/__init__.py": b"evil"}, lie="pkg/__init__.py"), tmp_path / "site")


def test_a_wheel_that_would_write_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="outside"):
        wheels.unpack(wheel(tmp_path, "pkg", {"../../etc/passwd": b"root"}), tmp_path / "site")
    assert not (tmp_path.parent / "etc").exists()


def test_the_device_gets_the_gateway_and_not_the_cloud_half(tmp_path: Path) -> None:
    own = wheel(tmp_path, "sluice", {"gateway/cli.py": b"", "cloud_bridge/cli.py": b"", "hil/__init__.py": b""})
    wheels.install(tmp_path / "root", [], own)
    site = tmp_path / "root/opt/sluice" / wheels.SITE
    assert (site / "gateway/cli.py").is_file()
    assert not (site / "cloud_bridge").exists()
    assert not (site / "hil").exists()
    assert (tmp_path / "root/opt/sluice/bin/gateway").read_text().startswith("#!/opt/sluice/bin/python\n")
    assert (tmp_path / "root/opt/sluice/bin/python").readlink() == Path(f"/usr/bin/python{wheels.PYTHON}")


def test_the_bill_of_materials_names_packages_of_both_kinds_and_is_the_same_each_time(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(
        "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.3.dfsg+really1.3.1-1\nArchitecture: amd64\n"
        "Installed-Size: 160\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
    )
    wheels.unpack(wheel(tmp_path, "pkg", {"pkg/__init__.py": b"x"}), root / "site")
    found = sbom.debian(root, "trixie") + sbom.python(root / "site")
    release = Release("1.2.3", "abc", 1_700_000_000, "1.0.0", 1)
    board = load(REPO / "image", "uefi-amd64")
    document = sbom.document(board, release, found)
    assert document == sbom.document(board, release, reversed(found))
    read = json.loads(document)
    assert (read["bomFormat"], read["specVersion"]) == ("CycloneDX", "1.6")
    assert [each["purl"] for each in read["components"]] == [
        "pkg:deb/debian/zlib1g@1%3A1.3.dfsg%2Breally1.3.1-1?arch=amd64&distro=trixie",
        "pkg:pypi/pkg@1.0",
    ]
    assert found[0].size == 160 * 1024


def test_the_bill_of_materials_names_each_part_of_a_vendor_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "u-boot.imx").write_bytes(b"U-Boot 2024.01")
    board = load(REPO / "image", "coral-devboard")
    found = sbom.vendor({board.vendor[0]: tmp_path / "u-boot.imx"})
    (entry,) = json.loads(sbom.document(board, Release("1.2.3", "abc", 1_700_000_000, "1.0.0", 1), found))["components"]
    digest = hashlib.sha256(b"U-Boot 2024.01").hexdigest()
    assert (entry["type"], entry["name"]) == ("file", "u-boot.imx")
    assert entry["purl"] == f"pkg:generic/u-boot.imx?checksum=sha256:{digest}"
    assert entry["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_only_the_locked_version_is_taken_from_the_cache_and_only_with_a_locked_hash(tmp_path: Path) -> None:
    right, later, other = (tmp_path / name for name in ("pkg-1.0-py3-none-any.whl", "pkg-1.0.1-py3-none-any.whl", "x"))
    right.write_bytes(b"right")
    later.write_bytes(b"a version that was taken back")
    other.write_bytes(b"")
    hashes = tuple(f"    --hash=sha256:{hashlib.sha256(each.read_bytes()).hexdigest()}" for each in (right, later))
    pin = Pin("pkg", "1.0", ("pkg==1.0 \\", *hashes))
    assert wheels.files_of(tmp_path, pin) == [right]
    right.write_bytes(b"left there by somebody else")
    assert wheels.files_of(tmp_path, pin) == []
    assert wheels.files_of(tmp_path, Pin("pkg", "1.0.1", pin.lines)) == [later]


@pytest.mark.parametrize("version", ["0.2", "1.0.0+build7", "1.0.0 ", "v1.0.0", "1.0.0-\u00e4"])
def test_an_image_is_not_built_with_a_version_that_no_rollout_takes(version: str) -> None:
    with pytest.raises(BuildError, match="no version: three numbers"):
        of_repository(REPO, version, None, None)
    with pytest.raises(BuildError, match="no version: three numbers"):
        of_repository(REPO, "1.0.0", version, None)
    assert of_repository(REPO, "1.4.0-rc.1", None, None).version == "1.4.0-rc.1"
