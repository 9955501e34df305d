"""Proves a release on this machine before anybody depends on it: digests, loading, golden inputs, within limits."""

import resource
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import BackendUnavailableError, GatewayError, ModelError
from gateway.inference.backend import ModelFile, SessionInfo
from gateway.inference.bundle import Release
from gateway.inference.golden import loosest_tolerance, verify_golden
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import open_model
from gateway.inference.plain import open_plain
from gateway.preprocess.preparation import preparation_for
from gateway.vault.errors import VaultError
from gateway.vault.store import read_release
from gateway.wire.manifest import Artefact, Target

_PARTS: Final[tuple[Target, ...]] = ("head", "tail")
"""Halves of a split model: they take and give features, so the manifest's input and output are not theirs."""


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about one artefact; `skipped` says why it was not run."""

    target: str
    file: str
    skipped: str = ""
    golden: int = 0
    runtime: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong with a release, where, and what to do."""

    code: str
    where: str
    message: str
    remedy: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found."""

    name: str
    version: str
    artefacts: list[Examined]
    problems: list[Problem]


def limit_this_process(memory_bytes: int | None, cpu_seconds: int | None) -> None:
    """Set limits that nothing in this process can lift: address space, processor time, file sizes, no core."""
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    if memory_bytes is not None or cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def verify_release(directory: Path) -> Verification:
    """Compare a plain release with its manifest, load what can run here, and run its golden inputs.

    Raises:
        ModelError: there is no manifest that can be read.
    """
    try:
        found = read_release(directory)
    except VaultError as error:
        raise ModelError(str(error)) from error
    release = Release(found.manifest, directory)
    examined: list[Examined] = []
    problems: list[Problem] = []
    for artefact in found.manifest.artefacts:
        try:
            release.verify(artefact)
        except ModelError as error:
            problems.append(_problem("digest", artefact.file, error, "build the release again, or copy it again"))
            continue
        try:
            seen, info = _examine(release, artefact)
            examined.append(seen)
            problems += [] if info is None else _tolerances(release, artefact, info)
        except (GatewayError, MemoryError) as error:
            problems.append(
                _problem(
                    "does-not-run",
                    f"{artefact.file} ({artefact.target})",
                    error,
                    "try it where it was made, with the runtime that devices have",
                )
            )
    problems += _golden_files(release, {one.target for one in examined if not one.skipped})
    return Verification(name=found.manifest.name, version=found.manifest.version, artefacts=examined, problems=problems)


def _golden_files(release: Release, run: set[str]) -> list[Problem]:
    """Read the golden files of what could not be run here; for the rest it has been done."""
    problems = []
    for golden in release.manifest.golden:
        if golden.target in run:
            continue
        try:
            release.read_golden(golden.input, golden.input_sha256)
            release.read_golden(golden.output, golden.output_sha256)
        except ModelError as error:
            problems.append(_problem("digest", golden.input, error, "build the release again, or copy it again"))
    return problems


def _tolerances(release: Release, artefact: Artefact, info: SessionInfo) -> list[Problem]:
    """Find golden inputs whose tolerance lets wrong answers pass."""
    problems = []
    for golden in release.manifest.golden:
        if golden.target != artefact.target:
            continue
        most = loosest_tolerance(release.read_golden(golden.output, golden.output_sha256), info.outputs)
        if most is not None and golden.tolerance > most:
            kinds = ", ".join(sorted({output.dtype for output in info.outputs}))
            problems.append(
                Problem(
                    code="tolerance",
                    where=f"manifest.json, golden, {golden.output}",
                    message=f"a tolerance of {golden.tolerance:g} shows nothing: at most {most:.4g} for this {kinds}",
                    remedy="write how far machines were seen apart; 2 steps are usual for int8",
                )
            )
    return problems


def _examine(release: Release, artefact: Artefact) -> tuple[Examined, SessionInfo | None]:
    """Load an artefact and run its golden inputs; None where it was not run."""
    backend = LiteRtBackend()
    seen = Examined(target=artefact.target, file=artefact.file)
    if artefact.target not in (*backend.targets, *_PARTS):
        skipped = "needs an accelerator; devices run its golden inputs themselves"
        return msgspec.structs.replace(seen, skipped=skipped), None
    availability = backend.probe()
    if not availability.available:
        raise BackendUnavailableError(availability.reason)
    golden = sum(1 for one in release.manifest.golden if one.target == artefact.target)
    if artefact.target in _PARTS:
        weights = open_plain(release, artefact)
        try:
            file = ModelFile(release.label, artefact.file, artefact.target, artefact.sha256, weights)
            session = backend.load(file, 1)
            try:
                verify_golden(release, session, artefact.target)
                info = session.info
            finally:
                session.close()
        finally:
            weights.close()
        return msgspec.structs.replace(seen, golden=golden, runtime=info.runtime), info
    model = open_model(release, artefact, backend, preparation_for, open_weights=open_plain)
    try:
        info = model.info
    finally:
        model.close()
    return msgspec.structs.replace(seen, golden=golden, runtime=info.runtime), info


def _problem(code: str, where: str, error: BaseException, remedy: str) -> Problem:
    text = "not enough memory within the limit" if isinstance(error, MemoryError) else str(error)
    text = text.removesuffix(": install the release again")  # who has made it does something else about it
    return Problem(code=code, where=where, message=text, remedy=remedy)
