"""The application of the image: which wheels, unpacked how, and what is said of them."""

import base64
import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

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


DEP_5 = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Files: *
License: GPL-2+

Files: lib/*
License: BSD-3-clause or GPL-2

Files: x/*
License: Expat

License: Permission to use, copy, modify, and distribute this software and its
 documentation

License: GPL-2+
 On Debian systems, the text is in /usr/share/common-licenses/GPL-2.
"""


@pytest.mark.parametrize(
    ("text", "licences"),
    [
        (DEP_5, ("BSD-3-clause or GPL-2", "GPL-2.0-or-later", "MIT")),
        ("It is free; see `/usr/share/common-licenses/LGPL-2.1'.\n", ("LGPL-2.1",)),
        ("It is free; see /usr/share/common-licenses/GPL.\n", ("GPL",)),
        ("Do as you like.\n", ()),
    ],
)
def test_the_licences_of_a_debian_package_are_those_that_its_copyright_file_names(
    tmp_path: Path, text: str, licences: tuple[str, ...]
) -> None:
    (tmp_path / "copyright").write_text(text)
    assert sbom.licences_of(tmp_path) == licences


def test_a_debian_package_whose_documents_are_those_of_another_of_its_source_has_its_licences(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "usr/share/doc/kmod-base").mkdir(parents=True)
    (tmp_path / "usr/share/doc/kmod-base/copyright").write_text(DEP_5)
    both = "Status: install ok installed\nVersion: 1\nArchitecture: amd64\n"
    (tmp_path / "var/lib/dpkg/status").write_text(
        f"Package: kmod\n{both}\nPackage: kmod-base\nSource: kmod (1-2)\n{both}\nPackage: other\n{both}"
    )
    found = {each.name: each.licences for each in sbom.debian(tmp_path, "trixie")}
    assert found["kmod"] == found["kmod-base"] != ()
    assert found["other"] == ()


def of_wheel(folder: Path, metadata: str) -> sbom.Component:
    info = folder / "pkg-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: pkg\nVersion: 1.0\n{metadata}")
    (info / "RECORD").write_text("")
    (found,) = sbom.python(folder)
    return found


@pytest.mark.parametrize(
    ("metadata", "licences", "expression"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: MIT\n", (), "MIT OR Apache-2.0"),
        ("License: Apache 2.0\n", ("Apache 2.0",), ""),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: Apache Software License\n",
         ("Apache Software License",), ""),
        ("Classifier: Topic :: System\nClassifier: License :: OSI Approved\n", (), ""),
    ],
)  # fmt: skip
def test_the_licence_of_a_python_package_is_what_its_metadata_says(
    tmp_path: Path, metadata: str, licences: tuple[str, ...], expression: str
) -> None:
    found = of_wheel(tmp_path, metadata)
    assert (found.licences, found.expression) == (licences, expression)


COMPONENT_KEYS = {"type", "bom-ref", "name", "version", "purl", "hashes", "licenses", "properties"}


def objections(bill: dict[str, Any]) -> list[str]:
    """Say what the schema of CycloneDX 1.6 (bom-1.6.schema.json) refuses, as far as this builder writes any of it."""
    found = [name for name in ("bomFormat", "specVersion") if name not in bill]
    if not re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"]):
        found.append("serialNumber")
    if type(bill["version"]) is not int or bill["version"] < 1:
        found.append("version")
    if datetime.fromisoformat(bill["metadata"]["timestamp"]).tzinfo is None:
        found.append("timestamp")
    top = bill["metadata"]["component"]
    references = [each["bom-ref"] for each in (top, *bill["components"])]
    if len(references) != len(set(references)):
        found.append("two components share a bom-ref")
    for each in (top, *bill["components"]):
        if each.keys() - COMPONENT_KEYS or not each.get("name") or each.get("version") == "":
            found.append(f"{each}: keys")
        if each["type"] not in {"application", "library", "file", "firmware", "operating-system"}:
            found.append(f"{each['name']}: type")
        for digest in each.get("hashes", ()):
            if digest["alg"] != "SHA-256" or not re.fullmatch("[0-9a-f]{64}", digest["content"]):
                found.append(f"{each['name']}: hash")
        licences = each.get("licenses", [])
        forms = [(set(choice), set(choice.get("license", ()))) for choice in licences]
        # One expression and nothing else, or licences, each by its identifier or its name.
        single = forms == [({"expression"}, set())] and licences[0]["expression"]
        if forms and not single and any(form not in (({"license"}, {"id"}), ({"license"}, {"name"})) for form in forms):
            found.append(f"{each['name']}: licenses")
    for edge in bill["dependencies"]:
        needs = edge["dependsOn"]
        if not {edge["ref"], *needs} <= set(references) or len(set(needs)) < len(needs):
            found.append("dependencies")
    return found


def test_the_bill_of_materials_is_what_the_schema_of_cyclonedx_demands(tmp_path: Path) -> None:
    board, release = load(REPO / "image", "coral-devboard"), Release("1.2.3", "abc", 1_700_000_000, "1.0.0", 1)
    (tmp_path / "u-boot.imx").write_bytes(b"U-Boot 2024.01")
    components = [
        sbom.Component("pkg:deb/debian/a@1", "a", "1", "deb", ("GPL-2.0-or-later", "curl")),
        of_wheel(tmp_path / "expression", "License-Expression: MIT\n"),
        *sbom.vendor({board.vendor[0]: tmp_path / "u-boot.imx"}),
    ]
    bill = json.loads(sbom.document(board, release, components))
    assert objections(bill) == []
    assert [each.get("licenses") for each in bill["components"]] == [
        [{"license": {"id": "GPL-2.0-or-later"}}, {"license": {"name": "curl"}}],
        None,
        [{"expression": "MIT"}],
    ]
    # The control: each of these the schema refuses.
    spoils: list[Callable[[], object]] = [
        lambda: bill.update(serialNumber="urn:uuid:1"),
        lambda: bill["components"].append(bill["components"][0]),
        lambda: bill["components"][2]["licenses"].append({"license": {"name": "MIT"}}),
        lambda: bill["components"][0].update(licence="GPL"),
        lambda: bill["dependencies"][0]["dependsOn"].append("pkg:deb/debian/none@1"),
    ]
    for spoil in spoils:
        before = len(objections(bill))
        spoil()
        assert len(objections(bill)) > before


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
