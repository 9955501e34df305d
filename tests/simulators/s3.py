"""An object store with the S3 protocol on loopback, in a process of its own: moto behind a WSGI server.

It checks signatures. Knobs, see `S3Server.set`: it may be away, or drop the connection in the middle of an object.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[2]

_KNOBS: Final = "/_knobs"

Environ = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environ, Start], Iterable[bytes]]


@dataclass
class Knobs:
    """What the store does wrong. `puts_left` are taken before it is away for whoever writes; -1: any number."""

    puts_left: int = -1
    failing: bool = False


class S3Server:
    """A store with one bucket. Its `environment` is what a program needs to reach it."""

    def __init__(self, bucket: str = "models") -> None:
        self.bucket = bucket
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.simulators.s3", self.bucket]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the object store has ended"
        self.environment = json.loads(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    @property
    def url(self) -> str:
        """Where a repository may lie."""
        return f"s3://{self.bucket}/fleet/registry"

    def set(self, **knobs: Any) -> None:
        """Turn knobs; those not named stay."""
        self._ask(knobs)

    def puts(self) -> int:
        """Return how many objects were written."""
        return int(self._ask({})["puts"])

    def _ask(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.environment["AWS_ENDPOINT_URL"] + _KNOBS, data=json.dumps(knobs).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


# ---- the server ----------------------------------------------------------------------------------


@dataclass
class _Faulty:
    """Stands before the store, and fails as the knobs say."""

    store: Application
    knobs: Knobs = field(default_factory=Knobs)
    puts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _KNOBS:
            wished = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            assert set(wished) <= {each.name for each in fields(Knobs)}, wished
            for name, value in wished.items():
                setattr(self.knobs, name, value)
            start("200 OK", [("content-type", "application/json")])
            return [json.dumps({"puts": self.puts}).encode()]
        if environ["REQUEST_METHOD"] == "PUT":
            with self.lock:
                refused = self.knobs.puts_left == 0
                self.knobs.puts_left -= self.knobs.puts_left > 0
                self.puts += not refused
            if refused:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 1) // 2)
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionResetError("the store goes away in the middle of an object")
        if self.knobs.failing:
            start("503 Service Unavailable", [("content-type", "text/plain"), ("content-length", "0")])
            return [b""]
        return self.store(environ, start)


def main() -> None:
    """Serve until killed; the first line of output is the environment of those who may use it."""
    import boto3  # noqa: PLC0415 - only this process needs these
    from moto import settings  # noqa: PLC0415
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    parser = argparse.ArgumentParser()
    parser.add_argument("bucket")
    bucket = parser.parse_args().bucket
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = make_server(
        "127.0.0.1", 0, _Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True, request_handler=Quiet
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    anybody: dict[str, Any] = {
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": "setup",
        "aws_secret_access_key": "setup",
    }
    boto3.client("s3", **anybody).create_bucket(Bucket=bucket)
    iam = boto3.client("iam", **anybody)
    iam.create_user(UserName="bridge")
    allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="bridge", PolicyName="bucket", PolicyDocument=json.dumps(allowed))
    key = iam.create_access_key(UserName="bridge")["AccessKey"]
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from now on signatures count
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_EC2_METADATA_DISABLED": "true",  # nobody is to look for a cloud around this machine
    }
    os.write(1, json.dumps(environment).encode() + b"\n")
    signal.pause()


if __name__ == "__main__":
    main()
