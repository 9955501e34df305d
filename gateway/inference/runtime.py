"""Finds the TFLite runtime: ai-edge-litert, or tflite-runtime where that is what the board has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import numpy as np
import structlog

from gateway.errors import BackendUnavailableError

log = structlog.get_logger()

_MODULES = (
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter"),
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with the interface of `tf.lite.Interpreter`."""

    name: str
    version: str
    interpreter: Callable[..., Any]
    load_delegate: Callable[..., Any]

    @property
    def is_old(self) -> bool:
        """tflite-runtime ended in 2023: it answers nonsense, without an error, for some int8-dynamic files."""
        return self.name == "tflite-runtime"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_runtime(importer: Callable[[str], ModuleType] = import_module, numpy_version: str = np.__version__) -> Runtime:
    """Import the best runtime there is.

    Raises:
        BackendUnavailableError: there is none that works; the message says what to install.
    """
    for distribution, module_name in _MODULES:
        try:
            module = importer(module_name)
        except ImportError:
            continue
        runtime = Runtime(distribution, _version(distribution), module.Interpreter, module.load_delegate)
        if runtime.is_old:
            # It imports under numpy 2, and then fails in a way that says nothing when a model is loaded.
            if int(numpy_version.split(".", 1)[0]) >= 2:
                raise BackendUnavailableError(
                    f"tflite-runtime cannot work with numpy {numpy_version}: install ai-edge-litert, or numpy below 2"
                )
            log.warning("runtime_outdated", runtime=str(runtime), consequence="int8-dynamic models may answer nonsense")
        return runtime
    raise BackendUnavailableError("no TFLite runtime is installed: pip install 'sluice[device]', or ai-edge-litert")


@cache
def installed_runtime() -> Runtime:
    """Return `find_runtime()`, looked for once; importing it costs some 40 ms.

    Raises:
        BackendUnavailableError: there is none that works.
    """
    return find_runtime()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"
