"""What the gate knows of the page: what its script calls, how many calls may be under way, and how errors are told it.

Gradio's script shows its visitor the text under "error", and Gradio puts there whatever an exception says.
"""

import json
from http import HTTPStatus

from serve.settings import cores
from serve.web.shape import Refusal, busy


CALLS = "/ui/gradio_api/"
FOR_BROWSERS = {"/favicon.ico": b"", "/manifest.json": b'{"name": "TSERve"}'}
"""What browsers ask for at the root on behalf of the page, without the key; what they take without a complaint."""
FAILED = "The server could not do this: choose another image, or load the page again."
_REFUSED = "The server does not take this: load the page again."


def at_once() -> int:
    """Calls that may be under way: more would only wait, and all else with them."""
    return max(16, 4 * cores())


def is_call(method: str, path: str) -> bool:
    """Whether a request is work that the page's script asks for: a click, an upload."""
    return method == "POST" and path.startswith(CALLS)


def overloaded() -> Refusal:
    """The refusal of a call beside which too many are under way."""
    return busy("overloaded", "the page has too many visitors", retry_after_s=1)


def told(refusal: Refusal) -> bytes:
    """A refusal of the gate's as the page's script takes it."""
    error = refusal.body.error
    return json.dumps({"error": f"{error.message[:1].upper()}{error.message[1:]}: {error.hint}."}).encode()


def in_words(status: int, body: bytes) -> tuple[bytes, str] | None:
    """Give the body and the code of an error under CALLS; None: it stays as it is.

    What was written for a visitor stays: {"error": words} alone, which is ours; gr.Error, known by its title; and plain
    text, such as that a file is too large, but for Starlette's own of a failure. What any other exception says may name
    files of the server.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        if status != HTTPStatus.INTERNAL_SERVER_ERROR:
            return None
    else:
        words = isinstance(said, dict) and isinstance(said.get("error"), str)
        if words and (said.keys() == {"error"} or "title" in said):
            return None
    try:
        code = HTTPStatus(status).name.lower()
    except ValueError:
        code = f"http_{status}"
    return json.dumps({"error": FAILED if status >= 500 else _REFUSED}).encode(), code
