"""Who gets in: with an API key set, everybody must bring it, but for the questions after the server's health.

The key comes as `Authorization: Bearer KEY`, or as the password of HTTP Basic (any user name), for which a browser asks
by itself, so that the page works too.
"""

import base64
import binascii
import hmac
from http import HTTPStatus

from serve.web.shape import Refusal


def authorised(given: list[bytes], key: bytes) -> bool:
    """Hold the values of a request's Authorization headers against the key; the comparison's time tells nothing."""
    if len(given) != 1:
        return False
    scheme, _, credentials = given[0].strip().partition(b" ")
    credentials = credentials.strip()
    match scheme.lower():
        case b"bearer":
            return hmac.compare_digest(credentials, key)
        case b"basic":
            return hmac.compare_digest(_password(credentials), key)
    return False


def unauthorised() -> Refusal:
    """The refusal of who brings no key, or another."""
    return Refusal(
        HTTPStatus.UNAUTHORIZED,
        "unauthorised",
        "this server asks for an API key",
        "send the header `Authorization: Bearer KEY`, or KEY as the password of HTTP Basic",
        headers={"WWW-Authenticate": 'Basic realm="TSERve", charset="UTF-8"'},
    )


def as_bytes(key: str) -> bytes:
    """The key as it comes over the wire; os.environ keeps bytes that are no UTF-8 as surrogates."""
    return key.encode("utf-8", "surrogateescape")


def _password(credentials: bytes) -> bytes:
    """The password in the base64 of "user:password"; empty, which is no key, if there is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
