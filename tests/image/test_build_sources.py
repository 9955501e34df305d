"""Where an image's packages come from follows from the apt of the machine that builds."""

from pathlib import Path

import pytest

from image.builder.errors import MissingError
from image.builder.sources import Source, apt_options, for_release, host_sources

ONE_LINE = """
# deb http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian/ bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb https://packages.example.com/apt bookworm main
deb https://download.example.com/linux/debian bookworm stable
"""
DEB822 = """
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Enabled: no
"""


def apt(folder: Path, one_line: str = "", deb822: str = "") -> Path:
    (folder / "sources.list.d").mkdir(parents=True)
    (folder / "sources.list").write_text(one_line)
    (folder / "sources.list.d/debian.sources").write_text(deb822)
    return folder


def test_archives_of_others_are_not_taken_for_mirrors_of_debian(tmp_path: Path) -> None:
    found = host_sources(apt(tmp_path / "apt", ONE_LINE))
    assert found == [
        Source("http://mirror.example/debian", "bookworm", "/usr/share/keyrings/x.gpg"),
        Source("http://mirror.example/debian-security", "bookworm-security"),
    ]


def test_both_formats_of_apt_are_read_and_carried_to_the_release_of_the_image(tmp_path: Path) -> None:
    found = host_sources(apt(tmp_path / "apt", "", DEB822))
    carried = for_release(found, "bookworm", "trixie")
    assert [source.suite for source in carried] == ["trixie", "trixie-updates"]
    options = "[arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert carried[0].line("arm64") == f"deb {options} http://mirror.example/debian trixie main"


def test_a_host_that_follows_stable_by_name_serves_as_well() -> None:
    assert for_release([Source("http://m/debian", "stable")], "trixie", "trixie") == [
        Source("http://m/debian", "trixie")
    ]


def test_without_an_archive_of_debian_the_build_says_what_to_name() -> None:
    with pytest.raises(MissingError, match="--apt-sources"):
        for_release([], "bookworm", "trixie")


def test_proxies_of_the_host_are_used_and_nothing_else_of_its_configuration() -> None:
    dump = (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAPT::Architecture "amd64";\nDPkg::Post-Invoke:: "true";\n'
    )
    options = apt_options(dump)
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in options
    assert "Post-Invoke" not in options


def test_no_mirror_is_named_in_the_builder() -> None:
    builder = Path(__file__).parents[2] / "image"
    texts = [file.read_text() for file in builder.rglob("*") if file.is_file() and file.suffix in {".py", ".toml", ""}]
    assert not any(word in text for text in texts for word in ("deb.debian.org", "snapshot.debian.org", "pypi.org"))
