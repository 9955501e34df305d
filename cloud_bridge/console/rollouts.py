"""The pages of rollouts. The only ones with deeds: they need the token, and a form from the console's own page."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cloud_bridge.console.login import is_from_here
from cloud_bridge.console.query import Query
from cloud_bridge.console.rendering import Context, Pages
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.records import Rollout
from cloud_bridge.rollout.service import DEEDS, Deed, Report, RolloutDesk
from gateway.wire.messages import kind_of

log: Final = structlog.get_logger()

SHOWN: Final = 50
MOST_DEVICES: Final = 200

_POSSIBLE: Final[dict[str, tuple[Deed, ...]]] = {
    "running": ("pause", "abort"),
    "paused": ("resume", "abort"),
    "halted": ("resume", "abort"),
}


class RolloutPages:
    """Answers with pages about rollouts, and carries out what their forms ask for."""

    def __init__(self, desk: RolloutDesk, pages: Pages, *, has_token: bool) -> None:
        self._desk = desk
        self._pages = pages
        self._has_token = has_token

    def routes(self) -> list[Route]:
        """Build the routes."""
        shows: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/rollouts": self.all,
            "/rollouts/{rollout_id}": self.one,
        }
        return [
            *(Route(path, handler, methods=["GET"]) for path, handler in shows.items()),
            Route("/rollouts/{rollout_id}/{deed}", self.act, methods=["POST"]),
        ]

    async def all(self, request: Request) -> Response:
        """Show the latest rollouts."""
        Query(request.query_params, ())
        found = await run_in_threadpool(self._desk.list, SHOWN)
        return self._page("rollouts", {"rollouts": [_row(one) for one in found]})

    async def one(self, request: Request) -> Response:
        """Show one rollout."""
        Query(request.query_params, ())
        try:
            report = await run_in_threadpool(self._desk.report, request.path_params["rollout_id"])
        except RolloutError as error:
            return self._refusal(404, str(error))
        return self._page("rollout", self._context(report))

    async def act(self, request: Request) -> Response:
        """Pause, resume or abort, and show the rollout again."""
        rollout_id, word = request.path_params["rollout_id"], request.path_params["deed"]
        deed = next((one for one in DEEDS if one == word), None)
        if deed is None:
            return self._refusal(404, "There is nothing here.")
        if not self._has_token:
            return self._refusal(403, "Without console.token_file the console only shows; use `cloud-bridge rollout`.")
        if not is_from_here(request):
            return self._refusal(403, "The form must be sent from the console's own page.")
        who = f"console {request.client.host}" if request.client else "console"
        try:
            moved = await run_in_threadpool(self._desk.act, rollout_id, deed, who=who)
        except RolloutError as error:
            return self._refusal(409, str(error))
        log.info("rollout_moved_by_console", rollout=moved.id, deed=deed, who=who)
        return RedirectResponse(f"/rollouts/{moved.id}", status_code=303)

    def _context(self, report: Report) -> Context:
        rollout = report.rollout
        troubled = [one for one in report.stands if one.standing in {"failing", "left"}]
        return {
            **_row(rollout),
            "report": report,
            "plan": rollout.plan,
            "troubled": troubled[:MOST_DEVICES],
            "more": max(0, len(troubled) - MOST_DEVICES),
            "deeds": _POSSIBLE.get(rollout.phase, ()) if self._has_token else (),
            "can_act": self._has_token,
        }

    def _refusal(self, status: int, detail: str) -> Response:
        return self._page("refusal", {"status": status, "detail": detail}, status)

    def _page(self, name: str, context: Context, status: int = 200) -> Response:
        frame = {"page": "rollouts", "signed_in": self._has_token}
        return HTMLResponse(self._pages.render(f"{name}.html", {**context, **frame}), status)


def _row(one: Rollout) -> dict[str, object]:
    releases = ([str(one.plan.release)] if one.plan.release else []) + [str(arm.release) for arm in one.plan.arms]
    at_wave = f"{one.wave + 1} of {len(one.plan.waves)}"
    return {"rollout": one, "kind": kind_of(one.plan.pipeline), "releases": releases, "at_wave": at_wave}
