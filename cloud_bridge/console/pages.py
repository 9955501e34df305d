"""The pages for people, and the streams that keep them up to date."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cloud_bridge.console.api import (
    EVENT_PARAMETERS,
    ROLLUP_PARAMETERS,
    next_before,
    next_rollups,
    rollups_asked_for,
)
from cloud_bridge.console.live import Broadcaster, Feed, Fragments
from cloud_bridge.console.problems import problem
from cloud_bridge.console.query import Query, is_key
from cloud_bridge.console.rendering import Context, Pages
from cloud_bridge.console.views import DELIVERY_FRAGMENTS, GATEWAY_FRAGMENTS, OVERVIEW_FRAGMENTS, Views
from cloud_bridge.store.base import ConsoleReader
from gateway.wire.topics import GATEWAY_ID

_MAX_GATEWAY_FEEDS: Final = 64


class PageRoutes:
    """Answers with pages."""

    def __init__(
        self,
        data: ConsoleReader,
        pages: Pages,
        broadcaster: Broadcaster,
        *,
        has_login: bool,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._data = data
        self._views = Views(data)
        self._pages = pages
        self._broadcaster = broadcaster
        self._has_login = has_login
        self._now = monotonic_ns
        self._overview_feed = self._feed(OVERVIEW_FRAGMENTS, self._views.overview)
        self._delivery_feed = self._feed(DELIVERY_FRAGMENTS, self._views.delivery)
        self._gateway_feeds: OrderedDict[str, Feed] = OrderedDict()

    def routes(self) -> list[Route]:
        """Build the routes of the pages and of their streams."""
        table: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self.overview,
            "/events": self.events,
            "/events/{event_id:path}": self.event,
            "/gateways/{gateway}": self.gateway,
            "/delivery": self.delivery,
            "/rollups": self.rollups,
            "/live/overview": self.live_overview,
            "/live/delivery": self.live_delivery,
            "/live/gateways/{gateway}": self.live_gateway,
        }
        return [Route(path, handler, methods=["GET"]) for path, handler in table.items()]

    async def overview(self, request: Request) -> Response:
        """Show everything at a glance."""
        Query(request.query_params, ())
        return self._page("overview", await run_in_threadpool(self._views.overview))

    async def delivery(self, request: Request) -> Response:
        """Show streams, gaps and dead letters."""
        Query(request.query_params, ())
        return self._page("delivery", await run_in_threadpool(self._views.delivery))

    async def events(self, request: Request) -> Response:
        """Show events, filtered, a page at a time."""
        query = Query(request.query_params, EVENT_PARAMETERS)
        limit, since_ns, until_ns = query.limit(), query.since_ns(), query.until_ns()
        gateway, pipeline, label, before = query.gateway(), query.pipeline(), query.text("label"), query.before()

        def read() -> Context:
            found = self._data.events(
                limit=limit + 1,
                gateway=gateway,
                pipeline=pipeline,
                label=label,
                since_ns=since_ns,
                until_ns=until_ns,
                before_id=before,
            )
            return {**self._views.events(found[:limit]), "next_before": next_before(found, limit)}

        context = await run_in_threadpool(read)
        asked = {name: request.query_params.get(name, "").strip() for name in EVENT_PARAMETERS}
        kept = {name: value for name, value in asked.items() if value and name != "before"}
        older = urlencode({**kept, "before": context["next_before"]})
        return self._page("events", {**context, "asked": asked, "older": older, "newest": urlencode(kept)})

    async def rollups(self, request: Request) -> Response:
        """Show sums by hour or day, filtered, a page at a time."""
        query = Query(request.query_params, ROLLUP_PARAMETERS)
        limit, wanted = query.limit(), rollups_asked_for(query)

        def read() -> Context:
            found = self._data.rollups(wanted, limit=limit + 1)
            return {**self._views.rollups(found[:limit]), "next_cursor": next_rollups(found, limit)}

        context = await run_in_threadpool(read)
        asked = {name: request.query_params.get(name, "").strip() for name in ROLLUP_PARAMETERS}
        kept = {name: value for name, value in asked.items() if value and name != "cursor"}
        older = urlencode({**kept, "cursor": context["next_cursor"]})
        return self._page("rollups", {**context, "asked": asked, "older": older, "newest": urlencode(kept)})

    async def event(self, request: Request) -> Response:
        """Show one event with its evidence."""
        gateway = Query(request.query_params, ("gateway",)).gateway()
        event_id = request.path_params["event_id"]
        context = await run_in_threadpool(self._views.event, event_id, gateway) if is_key(event_id) else None
        if context is None:
            return self.refusal(404, "No such event, or retention has removed it.")
        return self._page("event", context)

    async def gateway(self, request: Request) -> Response:
        """Show one gateway."""
        Query(request.query_params, ())
        context = await self._gateway(request.path_params["gateway"])
        if context is None:
            return self.refusal(404, "No gateway of this name was ever heard of.")
        return self._page("gateway", context)

    async def live_overview(self, request: Request) -> Response:
        """Follow the overview."""
        Query(request.query_params, ())
        return self._stream(self._overview_feed)

    async def live_delivery(self, request: Request) -> Response:
        """Follow the delivery page."""
        Query(request.query_params, ())
        return self._stream(self._delivery_feed)

    async def live_gateway(self, request: Request) -> Response:
        """Follow the page of one gateway."""
        Query(request.query_params, ())
        name = request.path_params["gateway"]
        if name not in self._gateway_feeds:
            if await self._gateway(name) is None:
                return problem(404, "no gateway of this name was ever heard of")
            self._gateway_feeds[name] = self._feed(GATEWAY_FRAGMENTS, lambda: self._views.gateway(name))
            if len(self._gateway_feeds) > _MAX_GATEWAY_FEEDS:
                self._gateway_feeds.popitem(last=False)
        return self._stream(self._gateway_feeds[name])

    def refusal(self, status: int, detail: str) -> Response:
        """Say on a page what cannot be had."""
        return self._page("refusal", {"status": status, "detail": detail}, status)

    async def _gateway(self, name: str) -> Context | None:
        return await run_in_threadpool(self._views.gateway, name) if GATEWAY_ID.fullmatch(name) else None

    def _stream(self, feed: Feed) -> Response:
        if self._broadcaster.is_full:
            return problem(429, "too many pages are open; the page still shows the latest state when loaded again")
        return self._broadcaster.stream(feed)

    def _feed(self, names: tuple[str, ...], view: Callable[[], Context | None]) -> Feed:
        def render() -> Fragments:
            context = view()
            return {} if context is None else self._pages.fragments(names, context)

        return Feed(self._data.change_counter, render, self._now)

    def _page(self, name: str, context: Context, status: int = 200) -> Response:
        frame = {"page": name, "signed_in": self._has_login}
        return HTMLResponse(self._pages.render(f"{name}.html", {**context, **frame}), status)
