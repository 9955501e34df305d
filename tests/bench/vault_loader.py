"""A process that loads one model, sealed or plain, and prints the peak of its resident memory in bytes."""

import hashlib
import sys
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    """Load by `sealed`, `plain` (by path) or `content` (read and hashed first, as the gateway loads plain files)."""
    mode, path = sys.argv[1], Path(sys.argv[2])
    if mode == "sealed":
        from gateway.vault.weights import open_sealed  # noqa: PLC0415 - the others must not pay for its imports

        with open_sealed(path, bytes(32)) as weights:
            interpreter = Interpreter(model_path=weights.path)
    elif mode == "content":
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        interpreter = Interpreter(model_content=content)
    else:
        interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.invoke()
    # Not ru_maxrss: that begins with what the parent had when it forked.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)


if __name__ == "__main__":
    main()
