"""The bridge's identity listener as the device sees it: four requests over HTTPS. The only file that knows httpx."""

import asyncio
import ssl
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.errors import ConfigError
from gateway.identity.clock import TrustedClock
from gateway.identity.errors import (
    IdentityError,
    IdentityRefusedError,
    IdentityUnreachableError,
    IdentityUntrustedError,
)
from gateway.identity.tls import (
    blind_context,
    client_context,
    clockless_context,
    fingerprint_of,
    first_of,
    is_about_time,
    pem_of,
)
from gateway.shown import shown
from gateway.wire.identity import (
    MAX_BODY_BYTES,
    PATH_ATTEST,
    PATH_CHALLENGE,
    PATH_ENROL,
    PATH_TRUST,
    AttestRequest,
    Challenge,
    ChallengeRequest,
    EnrolRequest,
    Granted,
    IdentityMessage,
    Refusal,
    Trust,
)

REQUEST_SECONDS: Final = 30.0
"""For a whole request, however slowly the other side answers."""
_MAX_ANSWER_BYTES: Final = 128 * MAX_BODY_BYTES
"""A grant is some 350 bytes, and there is one for each release that was not taken back: enough for 20,000."""

_HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}

M = TypeVar("M", bound=IdentityMessage)


class IdentityServer:
    """One bridge. Every request is a connection of its own: there are two an hour."""

    def __init__(self, url: str, clock: TrustedClock) -> None:
        """Take an address such as `https://bridge.example:8471`.

        Raises:
            ConfigError: it is not one.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ConfigError(f"identity.url {shown(url)!r} is not understood; write https://host:8471")
        self.url = url.rstrip("/")
        self._clock = clock

    async def trust(self, fingerprint: str) -> Trust:
        """Fetch the bundle without knowing whom to believe, and hold it against a fingerprint.

        The bundle returned is the certificate with that fingerprint, and no other: whoever stands in between could have
        added one to it. The whole one comes with the first grant, from a bridge that is believed.

        Raises:
            IdentityUntrustedError: it is another one.
            IdentityUnreachableError: no answer.
        """
        answer = await self._ask("GET", PATH_TRUST, None, Trust, blind_context())
        authority = first_of(answer.bundle)
        found = fingerprint_of(authority)
        if found != fingerprint.lower():
            raise IdentityUntrustedError(
                f"{self.url} has the authority {found[:16]}…, the claim code says {fingerprint[:16]}…: somebody stands "
                "between this device and the bridge, or the code is of another bridge"
            )
        return msgspec.structs.replace(answer, bundle=pem_of(authority))

    async def enrol(self, bundle: str, request: EnrolRequest) -> Challenge:
        """Ask for an identity. Raises IdentityError."""
        return await self._post(PATH_ENROL, request, Challenge, bundle)

    async def challenge(self, bundle: str, request: ChallengeRequest) -> Challenge:
        """Ask for a challenge. Raises IdentityError."""
        return await self._post(PATH_CHALLENGE, request, Challenge, bundle)

    async def attest(self, bundle: str, request: AttestRequest) -> Granted:
        """Answer a challenge. Raises IdentityError."""
        return await self._post(PATH_ATTEST, request, Granted, bundle)

    async def _post(self, path: str, request: IdentityMessage, kind: type[M], bundle: str) -> M:
        try:
            return await self._ask("POST", path, request, kind, client_context(bundle, self._clock))
        except IdentityUntrustedError as error:
            if not is_about_time(error):
                raise
        # Either the certificate is really over, or this device's clock is wrong. The floor tells some of the first.
        return await self._ask("POST", path, request, kind, clockless_context(bundle, self._clock))

    async def _ask(
        self, method: str, path: str, request: IdentityMessage | None, kind: type[M], context: ssl.SSLContext
    ) -> M:
        body = None if request is None else msgspec.json.encode(request)
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                # Proxies and .netrc of the environment are none of this connection's business.
                httpx.AsyncClient(verify=context, trust_env=False, timeout=REQUEST_SECONDS) as client,
                client.stream(method, self.url + path, content=body, headers=_HEADERS) as response,
            ):
                content = await _limited(response)
                status = response.status_code
        except TimeoutError as error:
            raise IdentityUnreachableError(f"{self.url} did not answer within {REQUEST_SECONDS:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            if _is_certificate_error(error):
                raise IdentityUntrustedError(
                    f"{self.url} is not the bridge that this device believes: {error}"
                ) from error
            raise IdentityUnreachableError(f"{self.url}: {str(error) or type(error).__name__}") from error
        return self._read(content, status, kind)

    def _read(self, content: bytes, status: int, kind: type[M]) -> M:
        if status == httpx.codes.OK:
            try:
                answer = msgspec.json.decode(content, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise IdentityUnreachableError(f"{self.url} answered what is no {kind.__name__}: {error}") from error
            return answer
        try:
            refusal = msgspec.json.decode(content, type=Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IdentityUnreachableError(f"{self.url} answered with HTTP status {status}") from error
        raise IdentityRefusedError(
            refusal.code,
            refusal.message,
            refusal_id=refusal.refusal_id,
            pcrs=refusal.pcrs,
            retry_after_seconds=refusal.retry_after_seconds,
        )


async def _limited(response: httpx.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_raw():  # as it came: what unfolds could be of any size
        content += part
        if len(content) > _MAX_ANSWER_BYTES:
            raise IdentityError(f"the answer is longer than {_MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
