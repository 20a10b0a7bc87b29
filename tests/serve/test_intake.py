"""Requests as they are read: what is taken, what is refused, with which status, code and place."""

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from synthetic import draw, png

from serve import images
from serve.bundle import InputRecord
from serve.web import bodies, intake, jsonbody
from serve.web.intake import Ask, Refusal
from serve.web.schema import Options


Output = TypeVar("Output")
Reader = Callable[[Request], Awaitable[Ask]]
PICTURE = png(draw(1))
TEXT = base64.b64encode(PICTURE).decode()
ONE = (draw(1)[None] / 255).tolist()
INPUT = InputRecord(channels=1, height=8, width=8)
READERS: dict[str, Reader] = {"image": intake.one, "images": intake.several}


class Decoder:
    """What the predictor does, for images of 1 x 8 x 8."""

    def decode(self, source: object) -> np.ndarray:
        return images.decode(source, INPUT)  # type: ignore[arg-type]

    def check(self, array: np.ndarray) -> np.ndarray:
        if array.shape[1:] != INPUT.shape:
            raise ValueError(f"images must have the shape [B, 1, 8, 8], got {list(array.shape)}")
        return array.astype(np.float32)


def asgi_request(
    body: bytes = b"", *, kind: str | None = None, query: str = "", ends: bool = True, parts: int = 1
) -> Request:
    """A request whose body comes in `parts`, and ends or is cut off."""
    headers = [] if kind is None else [(b"content-type", kind.encode())]
    step = -(-len(body) // parts) or 1
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[at : at + step], "more_body": True} for at in range(0, len(body), step)
    ]
    messages.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": query.encode()}
    return Request(scope, receive)


def request_of(query: str = "", **content: Any) -> Request:
    """The request that httpx would send."""
    sent = httpx.Request("POST", "http://server/", **content)
    return asgi_request(sent.read(), kind=sent.headers.get("content-type"), query=query)


def run(awaited: Awaitable[Output]) -> Output:
    async def main() -> Output:
        return await awaited

    return asyncio.run(main())


def read(field: str, query: str = "", **content: Any) -> Ask:
    return run(READERS[field](request_of(query, **content)))


def refused(field: str, query: str = "", **content: Any) -> tuple[int, str, str]:
    with pytest.raises(Refusal) as caught:
        read(field, query, **content)
    assert caught.value.body.error.hint
    return caught.value.status, caught.value.code, caught.value.body.error.message


def posted(value: object) -> dict[str, Any]:
    """A JSON body, as text where it is one already."""
    content = value if isinstance(value, (bytes, str)) else json.dumps(value)
    return {"content": content, "headers": {"content-type": "application/json"}}


FORMS: dict[str, dict[str, Any]] = {
    "a form": {"files": {"image": ("x.png", PICTURE, "image/png")}},
    "a form that says nothing of its file": {"files": {"image": ("x", PICTURE, "application/octet-stream")}},
    "bytes": {"content": PICTURE, "headers": {"content-type": "image/png"}},
    "bytes of another type": {"content": PICTURE, "headers": {"content-type": "IMAGE/JPEG; q=1"}},
    "bytes of no type": {"content": PICTURE, "headers": {"content-type": "application/octet-stream"}},
    "base64": posted({"image": TEXT}),
    "a data URI": posted({"image": f"data:image/png;base64,{TEXT}"}),
    "a data URI with a parameter": posted({"image": f"data:image/png;name=x.png;base64,{TEXT}"}),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS.keys())
def test_every_way_to_send_an_image_gives_its_bytes(content: dict[str, Any]) -> None:
    ask = read("image", **content)
    assert ask.images == [PICTURE]
    assert (ask.model, ask.options) == (None, Options())


def test_an_image_may_come_as_numbers() -> None:
    ask = read("image", **posted({"image": ONE}))
    assert np.array_equal(ask.images, np.array([ONE]))
    assert ask.images.dtype == np.float64


@pytest.mark.parametrize("wrap", [lambda images: images, lambda images: {"images": images}], ids=["bare", "object"])
def test_several_images_keep_their_order(wrap: Callable[[object], object]) -> None:
    arrays = [(draw(i)[None] / 255).tolist() for i in range(3)]
    assert np.array_equal(read("images", **posted(wrap(arrays))).images, np.array(arrays))
    files = [png(draw(i)) for i in range(3)]
    assert read("images", **posted(wrap([base64.b64encode(file).decode() for file in files]))).images == files


def test_several_files_keep_their_order() -> None:
    files = [png(draw(i)) for i in range(3)]
    assert read("images", files=[("images", (f"{i}.png", file)) for i, file in enumerate(files)]).images == files


WHOLE = Options(top_k=3, exit_confidence=0.25, steps=2, detail=False)
QUERY = "top_k=3&exit_confidence=0.25&steps=2&detail=false&model=a%20b"
GIVEN = {"top_k": 3, "exit_confidence": 0.25, "steps": 2, "detail": False, "model": "a b"}


@pytest.mark.parametrize(
    ("query", "content"),
    [
        (QUERY, FORMS["bytes"]),
        (QUERY, FORMS["a form"]),
        (QUERY, FORMS["base64"]),
        ("", posted({"image": TEXT} | GIVEN)),
        ("", posted(GIVEN | {"image": TEXT})),
        ("", FORMS["a form"] | {"data": {name: json.dumps(value) for name, value in GIVEN.items()}}),
        ("", FORMS["a form"] | {"data": GIVEN | {"detail": "false"}}),
        ("top_k=3&model=a+b", posted({"image": TEXT} | GIVEN)),
    ],
)
def test_options_may_stand_in_the_query_and_in_the_body(query: str, content: dict[str, Any]) -> None:
    ask = read("image", query, **content)
    assert (ask.options, ask.model) == (WHOLE, "a b")


def test_null_is_an_option_that_is_not_given() -> None:
    nothing = dict.fromkeys(GIVEN)
    for content in (posted({"image": TEXT} | nothing), FORMS["a form"] | {"data": dict.fromkeys(GIVEN, "null")}):
        ask = read("image", **content)
        assert (ask.options, ask.model) == (Options(), None)
    assert read("image", "steps=2", **posted({"image": TEXT, "steps": None})).options.steps == 2


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("top_k=0", "bad_option", "`top_k` is 0"),
        ("top_k=", "bad_option", '`top_k` is ""'),
        ("top_k=three", "bad_option", '`top_k` is "three"'),
        ("top_k=%203", "bad_option", '`top_k` is " 3"'),
        ("top_k=03", "bad_option", '`top_k` is "03"'),
        ("top_k=%D9%A3", "bad_option", "`top_k` is"),  # a digit, but not of ours
        ("top_k=null", "bad_option", '`top_k` is "null"'),
        ("top_k=" + "9" * 5000, "bad_option", "`top_k` is"),
        ("exit_confidence=NaN", "bad_option", '`exit_confidence` is "NaN"'),
        ("exit_confidence=1e999", "bad_option", "`exit_confidence` is Infinity"),
        ("exit_confidence=2", "bad_option", "`exit_confidence` is 2"),
        ("steps=1.5", "bad_option", "`steps` is 1.5"),
        ("detail=1", "bad_option", "`detail` is 1"),
        ("detail=True", "bad_option", '`detail` is "True"'),
        ("topk=3", "unknown_field", 'no query parameter is named "topk"; the nearest is `top_k`'),
        ("models=x", "unknown_field", "the nearest is `model`"),
        ("image=x", "unknown_field", 'no query parameter is named "image"'),
        ("top_k=3&top_k=3", "conflicting_options", "`top_k` is given twice"),
        ("model=a&model=b", "conflicting_options", '`model` is given twice: "a" and "b"'),
    ],
)
@pytest.mark.parametrize("field", READERS)
def test_a_wrong_query_is_refused_by_name(field: str, query: str, code: str, said: str) -> None:
    body = posted({"image": TEXT}) if field == "image" else posted([TEXT])
    status, given, message = refused(field, query, **body)
    assert (status, given) == (422, code)
    assert said in message


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"top_k": "3"}, "bad_option", '`top_k` is "3"'),
        ({"top_k": True}, "bad_option", "`top_k` is true"),
        ({"top_k": [3]}, "bad_option", "`top_k` is [3]"),
        ({"steps": 0}, "bad_option", "`steps` is 0"),
        ({"exit_confidence": "1"}, "bad_option", '`exit_confidence` is "1"'),
        ({"detail": 0}, "bad_option", "`detail` is 0"),
        ({"model": 3}, "bad_option", "`model` is 3"),
        ({"model": "\ud800", "topk": 1}, "unknown_field", 'no key is named "topk"; the nearest is `top_k`'),
        ({"\ud800": 1}, "unknown_field", r'no key is named "\ud800"'),
    ],
)
def test_a_wrong_option_in_json_is_refused_by_name(more: dict[str, Any], code: str, said: str) -> None:
    status, given, message = refused("image", **posted({"image": TEXT} | more))
    assert (status, given) == (422, code)
    assert said in message
    message.encode()


def test_query_and_body_must_agree() -> None:
    status, code, message = refused("image", "steps=1&top_k=2", **posted({"image": TEXT, "top_k": 2, "steps": 2}))
    assert (status, code, message) == (422, "conflicting_options", "`steps` is 1 in the query, but 2 in the body")


OTHERS = {
    "no type": (415, "wrong_content_type", "there is no content type", {"content": PICTURE}),
    "text": (415, "wrong_content_type", "'text/plain'", {"content": "x", "headers": {"content-type": "text/plain"}}),
    "a plain form": (415, "wrong_content_type", "urlencoded", {"data": {"image": "x"}}),
    "BentoML's pickle": (
        415,
        "wrong_content_type",
        "pickle",
        {"content": b"\x80", "headers": {"content-type": "application/vnd.bentoml+pickle"}},
    ),
    "a form without a boundary": (
        400,
        "bad_multipart",
        "boundary",
        {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
    ),
    "a broken form": (
        400,
        "bad_multipart",
        "cannot be read",
        {"content": b"hello", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ),
    "a form in a charset for no text": (
        400,
        "bad_multipart",
        "charset",
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n--x--\r\n',
            "headers": {"content-type": "multipart/form-data; boundary=x; charset=undefined"},
        },
    ),
    "a form with nothing": (
        422,
        "missing_field",
        "in the form",
        {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ),
    "a form without the file": (422, "missing_field", "in the form", {"files": {"top_k": (None, "3")}}),
    "another field": (422, "unknown_field", 'no form field is named "img"', {"files": {"img": PICTURE}}),
    "another text field": (
        422,
        "unknown_field",
        'no form field is named "topk"',
        FORMS["a form"] | {"data": {"topk": 1}},
    ),
    "an option as a file": (422, "bad_option", "`top_k` is a file", {"files": {"top_k": b"3"}}),
    "a wrong option": (422, "bad_option", '`top_k` is "x"', FORMS["a form"] | {"data": {"top_k": "x"}}),
    "an option twice": (422, "conflicting_options", "twice", FORMS["a form"] | {"data": {"top_k": ["3", "3"]}}),
    "null twice": (422, "conflicting_options", "twice", FORMS["a form"] | {"data": {"top_k": ["null", "null"]}}),
    "many text fields": (400, "bad_multipart", "Too many fields", FORMS["a form"] | {"data": {"top_k": ["3"] * 33}}),
}


@pytest.mark.parametrize(("status", "code", "said", "content"), OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("field", READERS)
def test_wrong_forms_and_types_are_refused(field: str, status: int, code: str, said: str, content: dict) -> None:
    if field == "images" and "image" in content.get("files", {}):
        content = {**content, "files": {"images": PICTURE}}
    given = refused(field, **content)
    assert given[:2] == (status, code)
    assert said in given[2]


@pytest.mark.parametrize("field", READERS)
def test_text_is_no_file(field: str) -> None:
    """BentoML would fetch it."""
    status, code, _ = refused(field, files={field: (None, "http://127.0.0.1:1/x")})
    assert (status, code) == (422, "not_a_file")


def test_one_image_is_not_two() -> None:
    assert refused("image", files=[("image", PICTURE)] * 2)[:2] == (422, "too_many_images")
    assert refused("images", files=[("images", PICTURE)] * 257)[:2] == (422, "too_many_images")
    assert len(read("images", files=[("images", PICTURE)] * 256).images) == 256


def test_bytes_are_only_taken_as_one_image() -> None:
    assert refused("images", content=PICTURE, headers={"content-type": "image/png"})[:2] == (415, "wrong_content_type")


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_a_body_that_is_cut_off_is_a_refusal_and_no_failure(kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        run(intake.one(asgi_request(b'--x\r\nContent-Disposition: form-data; name="image"', kind=kind, ends=False)))
    assert (caught.value.status, caught.value.code) == (400, "body_cut")


def test_a_body_may_come_in_pieces() -> None:
    sent = httpx.Request("POST", "http://server/", files={"image": ("x.png", PICTURE)}, data={"top_k": "7"})
    body, kind = sent.read(), sent.headers["content-type"]
    ask = run(intake.one(asgi_request(body, kind=kind, parts=len(body))))
    assert (ask.images, ask.options.top_k) == ([PICTURE], 7)


def test_large_files_of_a_form_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette writes files of a megabyte to disk; an image needs no disk, and a server may have none."""
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: pytest.fail("a file was written"))
    big = bytes(3 * 2**20)
    assert read("image", files={"image": ("x.png", big)}).images == [big]


def test_what_bentoml_is_handed_is_an_ask_or_a_refusal() -> None:
    good = run(intake.OneImage.from_http_request(request_of(**FORMS["bytes"]), None))
    bad = run(intake.SeveralImages.from_http_request(request_of(content=b"x"), None))

    @intake.answering_refusals
    async def api(self: object, ask: Ask) -> Ask:
        """Answer."""
        return ask

    assert run(api(None, ask=good.ask)).images == [PICTURE]
    response = run(api(None, ask=bad.ask))
    assert response.status_code == 415
    assert json.loads(response.body)["error"]["code"] == "wrong_content_type"
    assert api.__doc__ == "Answer."


def test_a_failure_is_logged_and_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    @intake.answering_refusals
    async def api(ask: Ask) -> Ask:
        raise ZeroDivisionError("a secret")

    response = run(api(ask=None))
    assert response.status_code == 500
    assert json.loads(response.body)["error"]["code"] == "internal_server_error"
    assert b"secret" not in response.body
    assert "a secret" in caplog.text


def test_the_model_of_a_get_request() -> None:
    assert run_get("") is None
    assert run_get("model=a%2Fb") == "a/b"
    for query in ("name=a", "top_k=3", "model=a&model=a"):
        with pytest.raises(Refusal) as caught:
            run_get(query)
        assert caught.value.status == 422


def run_get(query: str) -> str | None:
    return intake.asked_model(asgi_request(query=query))


def ask_of(images_: list[bytes] | np.ndarray) -> Ask:
    return Ask(images=images_, model=None, options=Options())


def refusal_of(images_: list[bytes] | np.ndarray) -> Refusal:
    with pytest.raises(Refusal) as caught:
        run(intake.pixels(ask_of(images_), Decoder()))
    return caught.value


@pytest.mark.parametrize("count", [1, 2, 33, 256])
def test_files_become_pixels_in_their_order(count: int) -> None:
    pixels = run(intake.pixels(ask_of([png(draw(i)) for i in range(count)]), Decoder()))
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels[:, 0], np.stack([draw(i) for i in range(count)]).astype(np.float32) / np.float32(255))


def test_large_files_are_decoded_in_turns_and_keep_their_order() -> None:
    shades = [10, 20, 30, 40, 50]
    files = [
        png(np.full((side, side), shade, np.uint8)) for side, shade in zip((8, 700, 8, 1100, 900), shades, strict=True)
    ]
    pixels = run(intake.pixels(ask_of(files), Decoder()))
    assert np.rint(pixels.mean(axis=(1, 2, 3)) * 255).astype(int).tolist() == shades


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (40, 1, 8, 8)])
def test_numbers_are_checked_by_the_model(shape: tuple[int, ...]) -> None:
    assert run(intake.pixels(ask_of(np.full(shape, 0.5)), Decoder())).dtype == np.float32
    refusal = refusal_of(np.zeros((*shape[:3], 7)))
    assert (refusal.status, refusal.code) == (422, "bad_array")
    assert "must have the shape [B, 1, 8, 8]" in refusal.body.error.message


def test_a_bad_file_is_refused_by_its_place() -> None:
    refusal = refusal_of([PICTURE, PICTURE, b"hello"])
    assert (refusal.status, refusal.code) == (400, "bad_image")
    assert refusal.body.error.message.startswith("images[2]: the file is not an image")
    assert refusal_of([PICTURE, PICTURE[:60]]).body.error.message.startswith("images[1]: ")
    assert refusal_of([b""]).body.error.message.startswith("the image is empty")


def test_the_pixels_of_a_request_are_bounded() -> None:
    """Nine files of 16 megapixels each are a tenth of a body."""
    header = struct.pack(">IIBBBBB", 4000, 4000, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(501 * 4000), 9)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    refusal = refusal_of([file] * 9)
    assert (refusal.status, refusal.code) == (422, "too_many_pixels")


def test_requests_take_turns_in_the_threads() -> None:
    """A request of many large images does not keep one of a single image waiting for all of them."""
    large = png(np.zeros((1000, 1000), np.uint8))
    finished: list[str] = []

    async def ask(name: str, files: list[bytes]) -> None:
        await intake.pixels(ask_of(files), Decoder())
        finished.append(name)

    async def main() -> None:
        crowds = [asyncio.create_task(ask("many", [large] * 20)) for _ in range(8)]
        await asyncio.sleep(0.05)
        await ask("one", [PICTURE])
        await asyncio.gather(*crowds)

    asyncio.run(main())
    assert finished[0] == "one"


def test_a_large_body_leaves_the_loop_its_turns() -> None:
    """256 images of 3 x 32 x 32 as numbers: the loop goes on many times while they are parsed."""
    array = np.round(np.random.default_rng(0).random((256, 3, 32, 32)), 4)
    request = request_of(**posted(array.tolist()))
    turns = 0

    async def main() -> Ask:
        nonlocal turns
        task = asyncio.create_task(intake.several(request))
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return await task

    ask = asyncio.run(main())
    assert np.array_equal(ask.images, array)
    assert turns >= 5


def test_the_limits_of_the_messages_are_those_of_the_code() -> None:
    assert f"at most {jsonbody.MAX_BATCH} images" in bodies.SEND["images"]
    assert "1 to 256" in jsonbody._HINTS["images"]
    assert jsonbody.MAX_BATCH == 256


def test_any_animation_is_one_image() -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)] * 3)
    assert run(intake.pixels(ask_of([file.getvalue()]), Decoder())).shape == (1, 1, 8, 8)
