"""The console as an ASGI application."""

import time
from collections.abc import Callable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cloud_bridge.console.api import api_routes
from cloud_bridge.console.drift import DriftPages
from cloud_bridge.console.guard import CarefulHeaders, HostCheck, TokenCheck
from cloud_bridge.console.live import Broadcaster
from cloud_bridge.console.login import login_routes
from cloud_bridge.console.pages import PageRoutes
from cloud_bridge.console.problems import problem
from cloud_bridge.console.query import BadQueryError
from cloud_bridge.console.rendering import Pages
from cloud_bridge.console.rollouts import RolloutPages
from cloud_bridge.console.sessions import Gatekeeper
from cloud_bridge.console.settings import ConsoleSettings, access_of
from cloud_bridge.console.watch_api import drift_api, rollout_api
from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.service import RolloutDesk
from cloud_bridge.store.base import ConsoleReader

log: Final = structlog.get_logger()

MAX_BODY_BYTES: Final = 8192
MAX_STREAMS: Final = 64

_WORDS: Final = {
    404: "There is nothing here.",
    405: "The console only shows: GET is what it answers.",
}


def create_app(
    data: ConsoleReader,
    settings: ConsoleSettings,
    metrics_text: Callable[[], bytes],
    *,
    is_closing: Callable[[], bool] = lambda: False,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    rollouts: RolloutDesk | None = None,
    drift: Database | None = None,
) -> Starlette:
    """Build the console.

    `metrics_text` gives the Prometheus text, may block, and may be called from any thread. Live pages are endless
    responses, which a server waits for when it stops: they end soon after `is_closing` says so.

    Raises:
        ConfigError: the console would be open to others without a token, or the token cannot be used.
    """
    access = access_of(settings)
    pages = Pages(gives_rollouts=rollouts is not None, watches_drift=drift is not None)
    gatekeeper = None if access.token is None else Gatekeeper(access.token, monotonic_ns)
    broadcaster = Broadcaster(max_streams=MAX_STREAMS, is_closing=is_closing, monotonic_ns=monotonic_ns)
    looks = PageRoutes(data, pages, broadcaster, has_login=gatekeeper is not None, monotonic_ns=monotonic_ns)
    middleware = [
        Middleware(CarefulHeaders),
        Middleware(HostCheck, access=access),
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES),
    ]
    login: list[Route] = []
    if gatekeeper is not None:
        middleware.append(Middleware(TokenCheck, gatekeeper=gatekeeper))
        login = login_routes(pages, gatekeeper)
    given, moved = [], []
    if rollouts is not None:
        given = [*RolloutPages(rollouts, pages, has_token=gatekeeper is not None).routes(), *rollout_api(rollouts)]
    if drift is not None:
        moved = [*DriftPages(drift, pages, has_login=gatekeeper is not None).routes(), *drift_api(drift)]
    return Starlette(
        routes=[
            *looks.routes(),
            *api_routes(data),
            *login,
            *given,
            *moved,
            *_service_routes(metrics_text),
            Mount("/static", StaticFiles(packages=[("cloud_bridge.console", "static")])),
        ],
        middleware=middleware,
        exception_handlers=_handlers(looks),
    )


def _service_routes(metrics_text: Callable[[], bytes]) -> list[Route]:
    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(_: Request) -> Response:
        text = await run_in_threadpool(metrics_text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/healthz", healthz, methods=["GET"]), Route("/metrics", metrics, methods=["GET"])]


def _handlers(looks: PageRoutes) -> dict[type[Exception], Callable[[Request, Exception], Response]]:
    def answer(request: Request, status: int, detail: str) -> Response:
        is_page = not request.url.path.startswith(("/api/", "/metrics", "/live", "/healthz", "/static/"))
        return looks.refusal(status, detail) if is_page else problem(status, detail)

    def bad_query(request: Request, error: Exception) -> Response:
        return answer(request, 400, str(error))

    def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        response = answer(request, status, _WORDS.get(status, str(error)))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    def store(request: Request, error: Exception) -> Response:
        log.warning("console_store_unreadable", path=request.url.path, error=str(error))
        response = answer(request, 503, "The store cannot be read right now; try again in a moment.")
        response.headers["Retry-After"] = "5"
        return response

    return {BadQueryError: bad_query, HTTPException: http, StoreError: store}
