"""The one shape of every error: {"error": {"code", "message", "hint"}}.

BentoML, Starlette and FastAPI answer errors in shapes of their own (an object, a list, plain text, nothing).
"""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from serve.web.schema import ErrorBody, ErrorDetail


LONGEST = 500  # characters of another's message that are passed on
FAILED = "the server failed at this request"
_SERVERS_FAULT = "this is the server's fault: its log says more, under the id that the header X-Request-ID gives"
_HINTS: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "POST /classify, POST /classify_batch, GET /model, GET /ui; the whole list is at /docs.json",
    HTTPStatus.METHOD_NOT_ALLOWED: "POST to /classify and /classify_batch, GET /model and /ui",
    HTTPStatus.INTERNAL_SERVER_ERROR: _SERVERS_FAULT,
    HTTPStatus.SERVICE_UNAVAILABLE: "the server is busy or starting: try again in a moment",
}


class Refusal(Exception):
    """A request that is answered with an error: HTTP status, code for programs, what is wrong, what to send."""

    def __init__(
        self,
        status: HTTPStatus | int,
        code: str,
        message: str,
        hint: str,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers` go with the answer: Retry-After, WWW-Authenticate."""
        super().__init__(message)
        self.status = int(status)
        self.code = code
        self.body = ErrorBody(error=ErrorDetail(code=code, message=message, hint=hint))
        self.headers = dict(headers or {})

    @property
    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body.model_dump(), status_code=self.status, headers=self.headers)


def too_large(max_body: int) -> Refusal:
    """The refusal of a body over `max_body` bytes."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the request body is over {max_body / 2**20:.3g} MB",
        "send a smaller image, or fewer images at a time",
    )


def busy(code: str, message: str, *, retry_after_s: int) -> Refusal:
    """A 503 that tells when to come again."""
    hint = f"try again in {retry_after_s} s, as the header Retry-After says"
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, code, message, hint, headers={"Retry-After": str(max(1, retry_after_s))}
    )


def failed() -> Refusal:
    """The answer for what went wrong in the server: what it was stands in the log alone."""
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", FAILED, _SERVERS_FAULT)


def in_shape(status: int, body: bytes) -> tuple[bytes, str]:
    """Give an error's body in the one shape, and its code; `body` is what BentoML or Starlette said, or ours already.

    What others say of a failure of the server stays inside: it may name files or versions.
    """
    try:
        return body, ErrorBody.model_validate_json(body).error.code
    except ValueError:
        pass
    try:
        known = HTTPStatus(status)
        code, phrase = known.name.lower(), known.phrase
    except ValueError:
        code, phrase = f"http_{status}", f"HTTP status {status}"
    message = FAILED if status >= 500 else _said(body)[:LONGEST] or phrase
    hint = _HINTS.get(status) or (_SERVERS_FAULT if status >= 500 else "the API is described at / and /docs.json")
    shaped = ErrorBody(error=ErrorDetail(code=code, message=message, hint=hint))
    return shaped.model_dump_json().encode(), code


def _said(body: bytes) -> str:
    """The message in JSON with an "error" or a "detail", in the first of a list of such, or in plain text."""
    try:
        said = json.loads(body)
        said = said[0] if isinstance(said, list) else said
        detail = said.get("error") or said["detail"]
        if isinstance(detail, list):  # FastAPI's: what was given stands in it too, which nobody asked for
            detail = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in detail)
        return str(detail)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return body.decode("utf-8", "replace").strip()
