"""Runs in the guest, as root: carries out commands that come over a virtio serial port. Standard library only.

The rig hands this file to a test image; a shipped image has nothing that would take it. Requests and answers are lines
of JSON: {"id", "run", "seconds"} → {"id", "code", "out", "err"}; {"id", "put", "data", "mode"} → {"id", "code"}.
"""

import base64
import json
import os
import subprocess
import sys
import time
from typing import Any, BinaryIO


def carry_out(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked; what goes wrong is part of the answer."""
    if "put" in request:
        try:
            handle = os.open(request["put"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, request.get("mode", 0o600))
            with open(handle, "wb") as out:  # noqa: PTH123 - opened with its mode
                out.write(base64.b64decode(request["data"]))
                out.flush()
                os.fsync(handle)
        except OSError as error:
            return {"code": 1, "out": "", "err": str(error)}
        return {"code": 0, "out": "", "err": ""}
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", request["run"]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=request.get("seconds", 60.0),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {"code": 124, "out": _text(error.stdout), "err": f"timed out; {_text(error.stderr)}"}
    return {"code": done.returncode, "out": _text(done.stdout), "err": _text(done.stderr)}


def serve(port: BinaryIO) -> None:
    """Answer until the port is gone."""
    while True:
        line = port.readline()
        if not line:
            time.sleep(0.2)  # nobody is at the other end yet
            continue
        try:
            request = json.loads(line)
        except ValueError:
            continue  # the rest of what was asked before a restart
        answer = {"id": request.get("id"), **carry_out(request)}
        left = memoryview(json.dumps(answer).encode() + b"\n")
        while left:
            left = left[port.write(left) :]  # the port is not buffered, and takes a part of what is long
        port.flush()


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")


if __name__ == "__main__":
    with open(sys.argv[1], "r+b", buffering=0) as raw:  # noqa: PTH123 - as early as it gets
        serve(raw)
