"""The wire contract needs nothing but msgspec."""

import subprocess
import sys

_PROBE = """
import pkgutil, sys
import gateway.wire
for module in pkgutil.iter_modules(gateway.wire.__path__):
    __import__(f"gateway.wire.{module.name}")
allowed = set(sys.stdlib_module_names) | {"gateway", "msgspec", "__main__", "typing_extensions"}
print(sorted({name.partition(".")[0] for name, module in sys.modules.items()
              if getattr(module, "__file__", None) and name.partition(".")[0] not in allowed and "site" not in name}))
print(sorted(name for name in sys.modules if name.startswith("gateway.") and not name.startswith("gateway.wire")))
print("asyncio" in sys.modules, "sqlite3" in sys.modules, "socket" in sys.modules)
"""


def test_importing_the_contract_imports_only_the_standard_library_and_msgspec() -> None:
    run = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=60)
    foreign, ours, loud = run.stdout.splitlines()
    assert [name for name in eval(foreign) if not name.startswith(("_", "sitecustomize"))] == []
    assert ours == "[]"
    assert loud == "False False False"
