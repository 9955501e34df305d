"""The build: one step after the other, from packages to disk and bundle."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from image.builder import (
    bundle,
    debian,
    disk,
    emulation,
    enrolment,
    initrd,
    layers,
    sbom,
    sizes,
    space,
    turns,
    uki,
    verity,
    wheels,
)
from image.builder.approvals import Signer
from image.builder.boards import EFI_ARCH, Board, Part, check_vendor
from image.builder.chroot import Tree
from image.builder.errors import MissingError
from image.builder.keys import Keys, check_folder, vendor_keys
from image.builder.progress import Progress
from image.builder.release import Release

_COMPRESS_LEVEL: Final = "-3"

_NOTHING_ADDED: Final = {"12": "0" * 64, "13": "0" * 64}
"""Arguments, credentials and extensions put beside the kernel image are measured there: none are approved."""

_RIG: Final = ("no_timer_check", "clearcpuid=cx16")
"""On a busy machine an emulated timer misses the moment in which the kernel looks whether it ticks, and it panics.
QEMU 7.2 now and then gets cmpxchg16b wrong, which the kernel uses for every allocation; NumPy wants to see that it is
there."""
_SHIPPING: Final = ("systemd.import_credentials=no",)
"""Whoever sets the firmware's strings could otherwise run what he likes as root. The rig starts its agent that way."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted."""

    repo: Path
    board: Board
    release: Release
    out: Path
    cache: Path
    keys: Path
    may_make_keys: bool
    vendor: Path | None
    overlays: tuple[Path, ...]  # of the caller, laid over last
    registers: Mapping[str, str]  # more PCRs that approvals name, e.g. 7
    apt_sources: Path | None
    cmdline: tuple[str, ...]  # more arguments of the kernel
    offline: bool
    rig: bool
    shipping: bool
    bundle_only: bool
    contents_only: bool


@dataclass(frozen=True, slots=True)
class Variant:
    """The finished files of one root."""

    name: str  # "" or "-rig"
    root: verity.Root
    ukis: tuple[uki.Uki, ...]
    files: tuple[Path, ...]


class Build:
    """One build."""

    def __init__(self, order: Order, progress: Progress) -> None:
        self._order = order
        self._progress = progress
        self._work = order.out / "work"
        self._root = self._work / "root"
        self._made = self._work / "made"
        self._enrolment: dict[str, Path] = {}
        self._parts: dict[Part, Path] = {}
        self.contents: list[sizes.Content] = []
        """What the root that ships is made of, largest first; filled in by `run`."""

    def run(self) -> dict[str, object]:
        """Build everything and return the manifest.

        Raises:
            BuildError: a step failed.
            MissingError: something has to be supplied first.
        """
        order = self._order
        if os.geteuid() != 0:
            raise MissingError("building an image needs root, for chroot and the owners of files: sudo make image")
        if not Path("/dev/null").is_char_device():
            raise MissingError("/dev/null is no device on this machine: rm /dev/null && mknod -m 666 /dev/null c 1 3")
        parts = self._parts = check_vendor(order.board, order.vendor)
        for part in order.board.vendor:
            if part not in parts:
                self._progress.say(f"built without {part.path}, which is optional: {part.what}")
        order.out.mkdir(parents=True, exist_ok=True)
        variants_wanted = 0 if order.contents_only else order.shipping + order.rig
        space.check(
            {
                order.cache: 0 if any(order.cache.glob("root-*.tar")) else space.TREES_BYTES,
                order.out: space.ROOT_BYTES + variants_wanted * space.VARIANT_BYTES,
            }
        )
        shutil.rmtree(self._work, ignore_errors=True)
        self._made.mkdir(parents=True)
        source = debian.archive(order.cache, order.apt_sources, offline=order.offline)
        if order.offline:
            debian.check_stored(source, order.board.packages, order.board.architecture)
        check_folder(order.keys, may_make=order.may_make_keys)
        with turns.in_turn(order.cache, self._progress):
            tools = Tree(debian.tools_tree(source, self._progress), self._progress)
            builder = tools
            if emulation.needed(order.board.architecture):
                builder = Tree(debian.cross_tree(source, order.board.architecture, self._progress), self._progress)
        keys = vendor_keys(order.keys, tools, may_make=order.may_make_keys)
        if keys.made:
            self._progress.say(f"new keys in {keys.folder}: keep them, devices trust nothing else")
        board = order.board
        with emulation.registered(board.architecture, tools.root):
            with turns.in_turn(order.cache, self._progress):
                tar = debian.root_tar(
                    source, board.packages, board.architecture, self._progress,
                    epoch=order.release.epoch, tools=tools.root,
                )  # fmt: skip
            kernel, components = self._lay_up(tar, tools, builder, keys, parts)
        bill = self._made / "sbom.cdx.json"
        bill.write_text(sbom.document(board, order.release, components))
        if order.contents_only:
            return self._publish(keys, [], [bill])
        if board.bootloader == "sdboot":
            self._enrolment = enrolment.write(self._made / "secure-boot", keys, tools, order.release.epoch)
        variants = [self._variant("", kernel, keys, tools)] if order.shipping else []
        if order.rig:
            layers.overlay(order.repo / "image" / "rig", self._root)
            variants.append(self._variant("-rig", kernel, keys, tools))
        with self._progress.step("files", "digests, into place"):
            document = self._publish(keys, variants, [bill])
            shutil.rmtree(self._work)
        return document

    def _lay_up(
        self, tar: Path, tools: Tree, builder: Tree, keys: Keys, parts: Mapping[Part, Path]
    ) -> tuple[uki.Kernel, list[sbom.Component]]:
        order, root, board = self._order, self._root, self._order.board
        index = wheels.Index(order.cache, self._progress, order.offline)
        with (
            self._progress.step("application", "wheels, TPM binding, Sluice"),
            turns.in_turn(order.cache, self._progress),
        ):
            some = wheels.fetch_application(order.repo, index, board.architecture)
            binding = wheels.build_tpm_binding(order.repo, index, builder, board.architecture, order.release.epoch)
            own = wheels.build_sluice(order.repo, some, tools, self._work, order.release.epoch)
        with self._progress.step("root", "unpacking, overlays, units"):
            layers.extract(tar, root, self._progress)
            layers.vendor(root, parts, tools)
            version = layers.kernel_version(root)
            layers.check_modules(version, parts)
            layers.drop_modules(root, board.drop_modules, tools)
            boot = self._work / "boot"
            shutil.copytree(root / "usr/lib/systemd/boot/efi", boot)
            shutil.copyfile(layers.kernel_image(root, version), boot / "vmlinuz")
            dtb = layers.device_tree(root, board.vendor, parts, boot)
            wheels.install(root, [*some.application, binding], own)
            for folder in board.overlays:
                layers.overlay(folder, root, disk.sizes(board))
            layers.describe(root, board, order.release, keys)
            layers.units(root, order.repo, tools)
            for folder in order.overlays:
                layers.overlay(folder, root)
        with self._progress.step("initrd", f"dracut, kernel {version}"):
            layers.overlay(order.repo / "image/initrd", root / "usr/lib/dracut/modules.d")
            initrd.build(
                root,
                version,
                boot / "initrd",
                tools,
                epoch=order.release.epoch,
                without=board.initrd_without,
            )
        components = sbom.debian(root, debian.RELEASE) + sbom.python(root / "opt/sluice" / wheels.SITE)
        components += sbom.vendor(parts)
        (root / "usr/share/sluice/sbom.cdx.json").write_text(sbom.document(board, order.release, components))
        owners = sizes.debian_owners(root)
        layers.clean(root, order.release.epoch)
        site = f"/opt/sluice/{wheels.SITE}"
        compiled = ["python3", "-m", "compileall", "-q", "-j1", "--invalidation-mode=unchecked-hash"]
        tools.run([*compiled, "-s", "/run/b/root", "-p", "/", f"/run/b/root{site}"], {root: "/run/b/root"})
        self.contents = sizes.contents(root, PurePosixPath(site.lstrip("/")), owners)
        stub = boot / f"linux{EFI_ARCH[board.architecture]}.efi.stub"
        os_release = (root / "usr/lib/os-release").read_text()
        return uki.Kernel(boot / "vmlinuz", boot / "initrd", version, stub, os_release, dtb), components

    def _variant(self, suffix: str, kernel: uki.Kernel, keys: Keys, tools: Tree) -> Variant:
        order, board, work = self._order, self._order.board, self._work
        with self._progress.step(f"root file system{suffix}", "erofs and dm-verity"):
            name = f"{board.name}{suffix}"
            packed = work / f"root{suffix}.img"
            root = verity.pack(
                self._root, packed, tools, name=name, epoch=order.release.epoch, limit=board.partitions.root
            )
        arguments = {
            slot: (*cmdline(board, root, slot), *(_RIG if suffix else _SHIPPING), *order.cmdline) for slot in "ab"
        }
        if board.bootloader == "custom":
            return self._for_vendor(suffix, kernel, root, arguments, keys=keys, tools=tools)
        with self._progress.step(f"kernel images{suffix}", "signed, one for each slot"):
            ukis = []
            for slot in "ab":
                target = work / f"{slot}{suffix}.efi"
                machine = EFI_ARCH[board.architecture]
                ukis.append(
                    uki.build(
                        kernel, target, tools, slot=slot, cmdline=arguments[slot], keys=keys.folder, efi_arch=machine
                    )
                )
            policies = Signer(order.repo, keys, tools).sign(
                order.release, ukis, {**_NOTHING_ADDED, **order.registers}, work / "approvals"
            )
        files = {f"{each.slot}.efi": each.file for each in ukis} | policies
        made: list[Path] = []
        with self._progress.step(f"bundle{suffix}"):
            target = self._made / f"bundle{suffix}.raucb"
            hook = order.repo / "image/bundle/hook"
            registers = {each.slot: each.pcr11 for each in ukis}
            bundle.build(
                target,
                board,
                order.release,
                tools,
                keys=keys,
                root=packed,
                files=files,
                pcr11=registers,
                hook=hook,
                work=work,
            )
            made.append(target)
        if not order.bundle_only:
            with self._progress.step(f"disk{suffix}"):
                made += self._disk(suffix, files, kernel, packed, keys=keys, tools=tools)
        return Variant(suffix, root, tuple(ukis), tuple(made))

    def _for_vendor(
        self,
        suffix: str,
        kernel: uki.Kernel,
        root: verity.Root,
        arguments: Mapping[str, tuple[str, ...]],
        *,
        keys: Keys,
        tools: Tree,
    ) -> Variant:
        """What a vendor's own flashing tool and boot chain take: root, initrd, and a command line for each slot."""
        order = self._order
        files: dict[str, Path] = {}
        for slot, words in arguments.items():
            files[f"{slot}.cmdline"] = self._work / f"{slot}{suffix}.cmdline"
            files[f"{slot}.cmdline"].write_text(" ".join(words) + "\n")
        target = self._made / f"bundle{suffix}.raucb"
        with self._progress.step(f"bundle{suffix}"):
            hook = order.repo / "image/bundle/hook"
            bundle.build(
                target,
                order.board,
                order.release,
                tools,
                keys=keys,
                root=root.file,
                files=files,
                pcr11={},
                hook=hook,
                work=self._work,
            )
        made = [target]
        for name, source in {**files, "root.img": root.file, "initrd": kernel.initrd, "Image": kernel.linux}.items():
            made.append(self._made / (name if not suffix else f"rig-{name}"))
            shutil.copyfile(source, made[-1])
        if kernel.dtb is not None and not suffix:
            made.append(self._made / kernel.dtb.name)
            shutil.copyfile(kernel.dtb, made[-1])
        return Variant(suffix, root, (), tuple(made))

    def _disk(
        self,
        suffix: str,
        files: Mapping[str, Path],
        kernel: uki.Kernel,
        packed: Path,
        *,
        keys: Keys,
        tools: Tree,
    ) -> list[Path]:
        order, board, work = self._order, self._order.board, self._work
        loader = None
        if board.bootloader == "sdboot":
            loader = work / "loader.efi"
            unsigned = kernel.stub.parent / f"systemd-boot{EFI_ARCH[board.architecture]}.efi"
            tools.run(
                ["sbsign", "--key", "/run/b/keys/db.key", "--cert", "/run/b/keys/db.crt",
                 "--output", "/run/b/out/loader.efi", f"/run/b/boot/{unsigned.name}"],
                {keys.folder: "/run/b/keys", work: "/run/b/out", unsigned.parent: "/run/b/boot"},
            )  # fmt: skip
        first = {f"EFI/sluice/{name}": file for name, file in files.items() if not name.startswith("b.")}
        script = board.folder / "boot.cmd"
        if script.is_file():
            (work / "boot.scr").write_bytes(disk.uboot_script(script.read_bytes(), order.release.epoch))
            first["boot.scr"] = work / "boot.scr"
        # In the setup menu of the firmware they can be chosen from the disk.
        first |= {f"EFI/sluice/keys/{name}": file for name, file in self._enrolment.items()}
        disk.esp_tree(work / "esp", board, loader, first, order.release.epoch)
        target = self._made / f"disk{suffix}.raw"
        disk.build(target, board, tools, esp=work / "esp", root=packed, work=work, epoch=order.release.epoch)
        disk.write_raw(target, self._parts)
        if suffix:
            return [target]  # of the rig: used where it is built
        packed_disk = target.with_suffix(".raw.zst")
        self._progress.run(["zstd", "--quiet", "--force", "-T0", _COMPRESS_LEVEL, target, "-o", packed_disk])
        return [target, packed_disk]

    def _publish(self, keys: Keys, variants: list[Variant], more: list[Path]) -> dict[str, object]:
        """Put the files in place when all are there: who uses the ones before is not left with half of each."""
        order = self._order
        files = [*more, *(file for variant in variants for file in variant.files)]
        document: dict[str, object] = {
            **order.release.document(order.board),
            "source_date_epoch": order.release.epoch,
            "architecture": order.board.architecture,
            "booted_in_tests": order.board.booted,
            "keyring_sha256": hashlib.sha256(keys.public("ca.crt")).hexdigest(),
            "variants": {
                variant.name.lstrip("-") or "shipping": {
                    "root_hash": variant.root.root_hash,
                    "root_bytes": variant.root.size,
                    "root_sha256": _sha256(variant.root.file),
                    "pcr11": {each.slot: each.pcr11 for each in variant.ukis},
                    "pcr11_phase": uki.GATEWAY_PHASE,
                }
                for variant in variants
            },
            "contents": [{"name": row.name, "kind": row.kind, "bytes": row.size} for row in self.contents],
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                for file in sorted(files, key=lambda file: -file.stat().st_size)
            },
        }
        for file in files:
            file.replace(order.out / file.name)
        if self._enrolment:
            shutil.rmtree(order.out / "secure-boot", ignore_errors=True)
            (self._made / "secure-boot").replace(order.out / "secure-boot")
        (order.out / "manifest.json").write_text(json.dumps(document, indent=2) + "\n")
        return document


def cmdline(board: Board, root: verity.Root, slot: str) -> tuple[str, ...]:
    """Return the kernel's command line of a slot. It is part of the signed image, and measured."""
    device = f"/dev/disk/by-partlabel/root-{slot}"
    return (
        "root=/dev/mapper/root",
        f"roothash={root.root_hash}",
        f"systemd.verity_root_data={device}",
        f"systemd.verity_root_hash={device}",
        f"systemd.verity_root_options=hash-offset={root.hash_offset},panic-on-corruption",
        f"rauc.slot={slot}",
        *board.cmdline,
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
