"""The login of people: the token in a form, then a session in a cookie that no script can read."""

import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qs

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cloud_bridge.console.guard import SESSION_COOKIE, host_name
from cloud_bridge.console.problems import problem
from cloud_bridge.console.rendering import Pages
from cloud_bridge.console.sessions import SESSION_SECONDS, Gatekeeper

log: Final = structlog.get_logger()

_MOST_BODY_BYTES: Final = 16 * 1024

# A path on this host. No second slash or backslash: browsers read those as another host.
_OWN_PATH: Final = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]{0,1000}")


def login_routes(pages: Pages, gatekeeper: Gatekeeper) -> list[Route]:
    """Build the routes of login and logout."""

    def form(wanted: str, remark: str = "", status: int = 200) -> Response:
        context = {"next": wanted, "remark": remark, "signed_in": False, "page": "login"}
        return HTMLResponse(pages.render("login.html", context), status)

    async def show(request: Request) -> Response:
        return form(own_path(request.query_params.get("next", "/")))

    async def login(request: Request) -> Response:
        if not is_from_here(request):
            return problem(403, "the form must be sent from the console's own page")
        try:
            fields = await _fields(request)
        except _TooLongError:
            return problem(413, f"a login is at most {_MOST_BODY_BYTES} bytes long")
        except ClientDisconnect:
            return problem(400, "the connection ended within the form")
        wanted = own_path(fields.get("next", "/"))
        if not gatekeeper.is_token(fields.get("token", "").strip()):
            log.warning("console_login_refused", client=request.client.host if request.client else None)
            return form(wanted, "This is not the token of this bridge.", 403)
        response = RedirectResponse(wanted, status_code=303)
        response.set_cookie(
            SESSION_COOKIE,
            gatekeeper.open_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def logout(request: Request) -> Response:
        if not is_from_here(request):
            return problem(403, "the form must be sent from the console's own page")
        gatekeeper.end_session(request.cookies.get(SESSION_COOKIE, ""))
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
        return response

    table: list[tuple[str, Callable[[Request], Awaitable[Response]], str]] = [
        ("/login", show, "GET"),
        ("/login", login, "POST"),
        ("/logout", logout, "POST"),
    ]
    return [Route(path, handler, methods=[method]) for path, handler, method in table]


def own_path(wanted: str) -> str:
    """Return a path to go to after the login; the front page for anything that could lead elsewhere."""
    return wanted if _OWN_PATH.fullmatch(wanted) else "/"


def is_from_here(request: Request) -> bool:
    """Tell whether a form was sent by a page of this console, as far as the browser says.

    A SameSite cookie does not protect the login itself: there is none yet.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin is None:
        return True
    return host_name(origin.partition("://")[2]) == host_name(request.headers.get("host", ""))


class _TooLongError(ValueError):
    """A body is longer than any form of ours. Nobody has shown a token yet: it must not fill the memory."""


async def _fields(request: Request) -> dict[str, str]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            raise _TooLongError
    try:
        given = parse_qs(body.decode("ascii", errors="replace"), max_num_fields=8)
        return {name: values[-1] for name, values in given.items()}
    except ValueError:
        return {}
