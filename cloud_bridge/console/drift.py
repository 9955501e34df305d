"""The page of drift: where inputs and answers have moved away, since when, and what is proposed."""

from collections.abc import Sequence
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cloud_bridge.console.query import Query
from cloud_bridge.console.rendering import Context, Pages
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Finding
from cloud_bridge.drift.judging import ORDER, worst
from cloud_bridge.drift.watch import told
from cloud_bridge.identity.database import Database

SHOWN: Final = 200
_EVENTS: Final = 50
_PROPOSALS: Final = 20


class DriftPages:
    """Answers with a page; it shows only, and changes nothing."""

    def __init__(self, database: Database, pages: Pages, *, has_login: bool) -> None:
        self._database = database
        self._pages = pages
        self._has_login = has_login

    def routes(self) -> list[Route]:
        """Build the route."""
        return [Route("/drift", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """Show the worst comparisons, what changed, and what is proposed."""
        Query(request.query_params, ())
        context = await run_in_threadpool(self._read)
        frame = {"page": "drift", "signed_in": self._has_login}
        return HTMLResponse(self._pages.render("drift.html", {**context, **frame}))

    def _read(self) -> Context:
        with self._database.transaction(durable=False) as tx:
            findings = list(book.findings(tx).values())
            events = book.events(tx, limit=_EVENTS)
            proposals = book.proposals(tx, limit=_PROPOSALS)
        return {
            "worst": worst([one.standing.level for one in findings]),
            "count": len(findings),
            "rows": _rows(findings),
            "events": events,
            "proposals": proposals,
        }


def _rows(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Return the worst first, cohorts before devices."""
    ordered = sorted(findings, key=lambda one: (-ORDER.index(one.standing.level), one.key.scope))
    return [{"finding": one, "told": told(one)} for one in ordered[:SHOWN]]
