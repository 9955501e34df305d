"""Which TFLite runtime is used."""

from types import ModuleType

import pytest
from structlog.testing import capture_logs

from gateway.errors import BackendUnavailableError
from gateway.inference.runtime import find_runtime, installed_runtime


def importer_of(*present: str):  # type: ignore[no-untyped-def] # a closure over names
    def load(name: str) -> ModuleType:
        if name not in present:
            raise ImportError(name)
        module = ModuleType(name)
        module.Interpreter = module.load_delegate = object  # type: ignore[attr-defined] # a module made here
        return module

    return load


LITERT, OLD = "ai_edge_litert.interpreter", "tflite_runtime.interpreter"


def test_litert_comes_first() -> None:
    runtime = find_runtime(importer_of(LITERT, OLD))
    assert runtime.name == "ai-edge-litert"
    assert not runtime.is_old


def test_the_old_runtime_is_taken_with_a_warning_where_it_is_all_there_is() -> None:
    with capture_logs() as logs:
        runtime = find_runtime(importer_of(OLD), numpy_version="1.26.4")
    assert runtime.is_old
    assert [entry["event"] for entry in logs] == ["runtime_outdated"]


def test_the_old_runtime_does_not_work_with_numpy_2() -> None:
    with pytest.raises(BackendUnavailableError, match=r"tflite-runtime cannot work with numpy 2\.4\.6: install"):
        find_runtime(importer_of(OLD), numpy_version="2.4.6")


def test_without_any_runtime_the_error_says_what_to_install() -> None:
    with pytest.raises(BackendUnavailableError, match="no TFLite runtime is installed: pip install"):
        find_runtime(importer_of())


def test_the_installed_runtime_is_named_with_its_version() -> None:
    assert str(installed_runtime()).startswith("ai-edge-litert 2.")
