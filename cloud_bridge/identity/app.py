"""The HTTP side of the identity service: constant paths, small bodies, limits. Everything else is in `service`."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_bridge.config import Identity
from cloud_bridge.errors import BridgeError
from cloud_bridge.identity.errors import RefusedError
from cloud_bridge.identity.limits import RateLimit, side_of
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.service import IdentityService
from gateway.wire.errors import MalformedMessageError
from gateway.wire.identity import (
    MAX_BODY_BYTES,
    PATH_ATTEST,
    PATH_CHALLENGE,
    PATH_ENROL,
    PATH_TRUST,
    AttestRequest,
    ChallengeRequest,
    EnrolRequest,
    IdentityMessage,
    Refusal,
    RefusalCode,
)
from gateway.wire.messages import decode, encode

log = structlog.get_logger()

_BODY_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 15.0
_STATUS: Final[dict[RefusalCode, int]] = {
    "malformed": 400,
    "unknown-device": 404,
    "session-unknown": 409,
    "session-used": 409,
    "session-expired": 409,
    "too-large": 413,
    "too-many-requests": 429,
    "unavailable": 503,
}
"""HTTP status of a refusal; 403 for the others."""

R = TypeVar("R", EnrolRequest, ChallengeRequest, AttestRequest)


class _Endpoints:
    def __init__(
        self, service: IdentityService, settings: Identity, metrics: IdentityMetrics, monotonic: Callable[[], float]
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._monotonic = monotonic
        self._by_side = RateLimit(settings.requests_per_minute)
        # Under one name *from one side*: else anybody could keep a device out by asking in its name.
        self._by_name = RateLimit(settings.requests_per_gateway_per_minute)
        self._failing = False

    async def trust(self, request: Request) -> Response:
        return await self._answered(self._trust(_side(request)))

    async def enrol(self, request: Request) -> Response:
        return await self._answered(self._post(request, EnrolRequest, lambda message, _: self._service.enrol(message)))

    async def challenge(self, request: Request) -> Response:
        return await self._answered(
            self._post(request, ChallengeRequest, lambda message, _: self._service.challenge(message))
        )

    async def attest(self, request: Request) -> Response:
        return await self._answered(self._post(request, AttestRequest, self._service.attest))

    async def _trust(self, side: str) -> IdentityMessage:
        self._count(self._by_side, side)
        return self._service.trust()

    async def _post(
        self, request: Request, kind: type[R], serve: Callable[[R, str], IdentityMessage]
    ) -> IdentityMessage:
        side = _side(request)
        self._count(self._by_side, side)
        try:
            message = decode(await _body(request), kind)
        except MalformedMessageError as error:
            raise RefusedError("malformed", str(error)) from error
        self._count(self._by_name, f"{side} {message.gateway}")
        try:
            return await asyncio.to_thread(serve, message, side)
        except RefusedError as error:
            return await asyncio.to_thread(self._service.refuse, error, message.gateway, side)

    def _count(self, limit: RateLimit, key: str) -> None:
        wait = limit.wait_seconds(key, self._monotonic())
        if wait:
            raise RefusedError(
                "too-many-requests", f"too many requests; come back in {wait:.1f} s", retry_after_seconds=round(wait, 1)
            )

    async def _answered(self, work: Coroutine[Any, Any, IdentityMessage]) -> Response:
        try:
            message = await work
            self._fares(error=None)
        except RefusedError as error:
            self._metrics.refused.labels(error.code).inc()
            message = Refusal(code=error.code, message=error.message, retry_after_seconds=error.retry_after_seconds)
        except BridgeError as error:
            self._fares(error)
            self._metrics.refused.labels("unavailable").inc()
            message = Refusal(
                code="unavailable", message="the bridge cannot answer now", retry_after_seconds=_RETRY_SECONDS
            )
        status = 200
        headers = {"cache-control": "no-store"}
        if isinstance(message, Refusal):
            status = next((status for code, status in _STATUS.items() if code == message.code), 403)
            if message.retry_after_seconds is not None:
                headers["retry-after"] = str(max(1, round(message.retry_after_seconds)))
        return Response(encode(message), status, headers, media_type="application/json")

    def _fares(self, error: BridgeError | None) -> None:
        if error is not None and not self._failing:
            log.error("identity_unavailable", error=str(error))
        elif error is None and self._failing:
            log.info("identity_available_again")
        self._failing = error is not None


async def _body(request: Request) -> bytes:
    """Read a body: not for longer, and not more, than a device needs.

    Raises:
        RefusedError: `too-large`, or `malformed` when it does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RefusedError("too-large", f"a body is at most {MAX_BODY_BYTES} bytes long")
    except TimeoutError as error:
        raise RefusedError("malformed", f"the body did not come within {_BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise RefusedError("malformed", "the connection ended within the body") from error
    return bytes(body)


def _side(request: Request) -> str:
    return side_of(request.client.host if request.client is not None else "")


def create_app(
    service: IdentityService,
    settings: Identity,
    metrics: IdentityMetrics,
    monotonic: Callable[[], float] = time.monotonic,
) -> Starlette:
    """Make the application."""
    endpoints = _Endpoints(service, settings, metrics, monotonic)
    return Starlette(
        routes=[
            Route(PATH_TRUST, endpoints.trust, methods=["GET"]),
            Route(PATH_ENROL, endpoints.enrol, methods=["POST"]),
            Route(PATH_CHALLENGE, endpoints.challenge, methods=["POST"]),
            Route(PATH_ATTEST, endpoints.attest, methods=["POST"]),
        ]
    )
