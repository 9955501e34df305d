"""What stands before every route: the host check, the token, and the headers that keep a browser careful."""

import ipaddress
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_bridge.console.problems import problem
from cloud_bridge.console.sessions import Gatekeeper
from cloud_bridge.console.settings import Access, is_loopback

SESSION_COOKIE: Final = "sluice_session"

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_OPEN_PATHS: Final = frozenset({"/healthz", "/login"})
_OPEN_PREFIX: Final = "/static/"
_PROGRAM_PATHS: Final = ("/api/", "/metrics", "/live")


class CarefulHeaders:
    """Adds the security headers to every response; one that a route has set itself stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back with the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        # What ships with the console is asked for again with its ETag; everything else is nobody's to keep.
        cache = "no-cache" if scope["path"].startswith(_OPEN_PREFIX) else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", cache)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostCheck:
    """Refuses requests for names that are not ours.

    A page elsewhere can make its own name point at this machine (DNS rebinding) and would then be of the same
    origin as the console; it cannot do so with a name that we know, nor with an address.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its host is ours."""
        if scope["type"] == "http" and not self._is_ours(HTTPConnection(scope).headers.getlist("host")):
            refusal = PlainTextResponse(
                "421 The console does not answer under this host name.\n"
                "Use the name or address it listens on, or add this name to console.host_names.\n",
                status_code=421,
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, given: list[str]) -> bool:
        host = host_name(given[0]) if len(given) == 1 else None
        if host is None:
            return False
        if is_loopback(host) or host in self._access.names:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._access.any_address


class TokenCheck:
    """Lets through who shows the token (programs) or a session (people); `/healthz` and the login need neither."""

    def __init__(self, app: ASGIApp, gatekeeper: Gatekeeper) -> None:
        self._app = app
        self._gatekeeper = gatekeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it may."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        request = HTTPConnection(scope)
        if path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX) or self._may(request):
            await self._app(scope, receive, send)
        else:
            await self._refusal(path, scope)(scope, receive, send)

    def _may(self, request: HTTPConnection) -> bool:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._gatekeeper.is_token(credentials.strip())
        return self._gatekeeper.has_session(request.cookies.get(SESSION_COOKIE, ""))

    def _refusal(self, path: str, scope: Scope) -> Response:
        if path.startswith(_PROGRAM_PATHS):
            refusal = problem(401, "send the token of console.token_file as `Authorization: Bearer …`")
            refusal.headers["WWW-Authenticate"] = 'Bearer realm="sluice"'
            return refusal
        query = scope["query_string"].decode("latin-1")
        wanted = f"{path}?{query}" if query else path
        return RedirectResponse(f"/login?next={quote(wanted, safe='/')}", status_code=303)


def host_name(header: str) -> str | None:
    """Return the name or address of a Host header in lower case, None if it is malformed."""
    if not header or any(sign in header for sign in "/?#@\\ "):
        return None
    try:
        parts = urlsplit(f"//{header}")
        parts.port  # noqa: B018  # raises if it is not a number
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None
