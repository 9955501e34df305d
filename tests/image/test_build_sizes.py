"""What the root is made of, by size."""

import os
from pathlib import Path, PurePosixPath

from image.builder import sizes
from image.builder.sizes import Content

SITE = PurePosixPath("opt/sluice/lib/python3.13/site-packages")


def put(root: Path, path: str, size: int) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    return file


def packed(root: Path) -> None:
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "bash.list").write_text("/.\n/bin\n/bin/bash\n")
    (info / "libc6:arm64.list").write_text("/usr/lib/aarch64-linux-gnu/libc.so.6\n/usr/share/gone\n")
    (info / "libpython3.13-stdlib:arm64.list").write_text("/usr/lib/python3.13/ast.py\n")
    put(root, "usr/bin/bash", 1000)
    put(root, "usr/lib/aarch64-linux-gnu/libc.so.6", 2000)
    put(root, "usr/lib/python3.13/ast.py", 10)
    put(root, "usr/lib/python3.13/__pycache__/ast.cpython-313.pyc", 20)
    put(root, "usr/lib/modules/6.12/kernel/x.ko.xz", 500)
    put(root, f"{SITE}/numpy/core.so", 9000)
    put(root, f"{SITE}/numpy.libs/blas.so", 1000)
    put(root, f"{SITE}/numpy-2.0.dist-info/METADATA", 5)
    (root / SITE / "numpy-2.0.dist-info/RECORD").write_text(
        "numpy/core.so,,9000\nnumpy.libs/blas.so,,1000\nnumpy-2.0.dist-info/METADATA,,5\n"
    )
    put(root, "opt/sluice/bin/gateway", 7)
    put(root, "etc/fstab", 3)


def test_each_file_counts_for_the_package_that_brought_it_largest_first(tmp_path: Path) -> None:
    packed(tmp_path)
    owners = sizes.debian_owners(tmp_path)
    database = sum(file.stat().st_size for file in (tmp_path / "var").rglob("*") if file.is_file())
    found = sizes.contents(tmp_path, SITE, owners)
    record = (tmp_path / SITE / "numpy-2.0.dist-info/RECORD").stat().st_size
    assert found[0] == Content("numpy", "python", 10_005 + record)
    rows = {row.name: row.size for row in found}
    assert rows["libc6"] == 2000
    assert rows["bash"] == 1000
    assert rows["libpython3.13-stdlib"] == 30
    assert rows["kernel modules"] == 500
    assert rows["Sluice"] == 7
    assert rows["configuration, caches"] == 3 + database
    whole = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert sum(rows.values()) == whole


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    file = put(tmp_path, "usr/bin/perl", 4000)
    os.link(file, tmp_path / "usr/bin/perl5")
    assert sum(row.size for row in sizes.contents(tmp_path, SITE, {})) == 4000


def test_the_table_shows_the_largest_and_the_rest_as_one_line() -> None:
    rows = [Content(f"p{number}", "debian", (9 - number) * 1_000_000) for number in range(5)]
    assert sizes.table(rows, shown=2) == [
        "      9.0 MB  p0 (debian)",
        "      8.0 MB  p1 (debian)",
        "     18.0 MB  3 more",
    ]
    assert sizes.table([], shown=2) == []
