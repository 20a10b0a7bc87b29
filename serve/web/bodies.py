"""Read the bodies of requests that may be there at all: forms and bytes. JSON is read in serve.web.jsonbody."""

from http import HTTPStatus
from typing import Literal

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serve.web import options
from serve.web.jsonbody import MAX_BATCH, wrong
from serve.web.shape import Refusal


Field = Literal["image", "images"]
FORM, JSON, BYTES = "multipart/form-data", "application/json", "application/octet-stream"
SEND: dict[Field, str] = {
    "image": "send multipart/form-data with the file in the field `image`, the bytes of the file with its content type "
    '(image/png), or application/json, {"image": base64 or a nested array [C, H, W]}',
    "images": "send application/json, a nested array [B, C, H, W] of numbers in [0, 1] or "
    '{"images": that, or a list of base64 strings}, or multipart/form-data with files in the field `images`; '
    f"at most {MAX_BATCH} images",
}
_TEXT_FIELDS = 32


class _Form(MultiPartParser):
    """Starlette's reader of multipart bodies, but for its files on disk: the gate bounds what is held in memory."""

    spool_max_size = 2**31


def media_type(request: Request) -> str:
    """The content type without its parameters, "" if there is none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def is_image(kind: str) -> bool:
    """Whether a body of this type is an image file; which one, its first bytes say."""
    return kind.startswith("image/") or kind == BYTES


def unsupported(request: Request, field: Field) -> Refusal:
    """The refusal of a content type."""
    given = request.headers.get("content-type")
    told = "there is no content type" if given is None else f"the content type is {given[:80]!r}"
    return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", told, SEND[field])


async def whole(request: Request) -> bytes:
    """The body. Raises Refusal if it ends before its end."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise _cut() from None


async def form(request: Request, field: Field) -> tuple[list[bytes], list[tuple[str, str]]]:
    """The files of `field`, 1 to MAX_BATCH, and the text fields with options' names. Raises Refusal."""
    try:
        parsed = await _Form(request.headers, request.stream(), max_files=MAX_BATCH, max_fields=_TEXT_FIELDS).parse()
    except ClientDisconnect:
        raise _cut() from None
    except (MultiPartException, ValueError, LookupError) as error:  # the last two: a charset that is none for text
        told = error.message if isinstance(error, MultiPartException) else "its charset is unknown"
        if told.startswith("Too many files"):
            raise wrong("too_many_images", f"more than {MAX_BATCH} files in one request", SEND[field]) from None
        why = f"the form cannot be read: {told}"
        raise Refusal(HTTPStatus.BAD_REQUEST, "bad_multipart", why, SEND[field]) from None
    files: list[bytes] = []
    texts: list[tuple[str, str]] = []
    for name, value in parsed.multi_items():
        if isinstance(value, str):
            if name == field:
                raise wrong("not_a_file", f"the field `{field}` is text, not a file: it needs a file name", SEND[field])
            texts.append((name, value))
        elif name == field:
            files.append(await value.read())
        elif name in options.NAMES:
            raise wrong("bad_option", f"the field `{name}` is a file, not text", options.HINT)
        else:
            raise options.unknown(name, "form field", (field, *options.NAMES))
    if not files:
        raise wrong("missing_field", f"no field `{field}` in the form", SEND[field])
    return files, texts


def _cut() -> Refusal:
    """Nobody reads it but the log."""
    return Refusal(HTTPStatus.BAD_REQUEST, "body_cut", "the connection ended before the body did", "send it again")
