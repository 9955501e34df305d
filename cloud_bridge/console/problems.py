"""Refusals as RFC 9457 problem documents."""

from http import HTTPStatus

import msgspec
from starlette.responses import Response


def problem(status: int, detail: str) -> Response:
    """Build a problem document; `detail` says what would have been right."""
    content = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail}
    return Response(msgspec.json.encode(content), status, media_type="application/problem+json")
