"""The part of the HTTP API about rollouts and drift; there where the bridge has them. Reading only, as the rest."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_bridge.console.problems import problem
from cloud_bridge.console.query import Query
from cloud_bridge.drift import book
from cloud_bridge.drift.judging import ORDER
from cloud_bridge.drift.plain import event_plain, finding_plain, proposal_plain
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.plain import report_plain, rollout_plain
from cloud_bridge.rollout.service import RolloutDesk

Handler = Callable[[Request], Awaitable[Response]]

_LEVELS: Final = ("level", "gateway", "model", "limit")


def rollout_api(desk: RolloutDesk) -> list[Route]:
    """Build the routes of rollouts below /api/v1."""
    return _routes({"/rollouts": _Rollouts(desk).all, "/rollouts/{rollout}": _Rollouts(desk).one})


def drift_api(database: Database) -> list[Route]:
    """Build the routes of drift below /api/v1."""
    api = _Drift(database)
    return _routes({"/drift": api.findings, "/drift/events": api.events, "/drift/proposals": api.proposals})


class _Rollouts:
    def __init__(self, desk: RolloutDesk) -> None:
        self._desk = desk

    async def all(self, request: Request) -> Response:
        limit = Query(request.query_params, ("limit",)).limit()
        found = await run_in_threadpool(self._desk.list, limit)
        return _json({"rollouts": [rollout_plain(one) for one in found]})

    async def one(self, request: Request) -> Response:
        Query(request.query_params, ())
        try:
            report = await run_in_threadpool(self._desk.report, request.path_params["rollout"][:80])
        except RolloutError as error:
            return problem(404, str(error))
        return _json(report_plain(report))


class _Drift:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def findings(self, request: Request) -> Response:
        query = Query(request.query_params, _LEVELS)
        limit, gateway, model = query.limit(), query.gateway(), query.text("model")
        lowest = ORDER.index(query.choice("level", ORDER) or ORDER[0])
        found = [
            one
            for one in (await run_in_threadpool(self._findings)).values()
            if ORDER.index(one.standing.level) >= lowest
            and gateway in (None, one.key.subject.partition("/")[0])
            and model in (None, one.key.model)
        ]
        found.sort(key=lambda one: (-ORDER.index(one.standing.level), one.key.scope))
        return _json({"findings": [finding_plain(one) for one in found[:limit]], "count": len(found)})

    async def events(self, request: Request) -> Response:
        query = Query(request.query_params, ("since", "limit"))
        found = await run_in_threadpool(self._events, query.since_ns() or 0, query.limit())
        return _json({"events": [event_plain(one) for one in found]})

    async def proposals(self, request: Request) -> Response:
        limit = Query(request.query_params, ("limit",)).limit()
        found = await run_in_threadpool(self._proposals, limit)
        return _json({"proposals": [proposal_plain(one) for one in found]})

    def _findings(self) -> dict[book.FindingKey, book.Finding]:
        with self._database.transaction(durable=False) as tx:
            return book.findings(tx)

    def _events(self, since_ns: int, limit: int) -> list[book.DriftEvent]:
        with self._database.transaction(durable=False) as tx:
            return book.events(tx, since_ns=since_ns, limit=limit)

    def _proposals(self, limit: int) -> list[book.Proposal]:
        with self._database.transaction(durable=False) as tx:
            return book.proposals(tx, limit=limit)


def _routes(table: dict[str, Handler]) -> list[Route]:
    return [Route(f"/api/v1{path}", handler, methods=["GET"]) for path, handler in table.items()]


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
