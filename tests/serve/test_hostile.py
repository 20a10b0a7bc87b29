"""Malformed requests of our own making against the running server; benchmarks/serve_endurance.py sends thousands."""

import sys
from pathlib import Path
from random import Random

import httpx
import pytest
from synthetic import SIZE, draw, png


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import hostile_images
from hostile_case import Case, Target, message, upload
from PIL import Image
from serve_hostile import KINDS, Outcome, attack, cases, verdict


TARGET = Target(image=png(draw(1)), shape=(1, SIZE, SIZE))
COUNT = 300
HEAD = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\r\n"
SHAPED = b'{"error": {"code": "bad", "message": "it is bad", "hint": "send good"}}'


@pytest.fixture(scope="module")
def outcomes(server: str) -> list[Outcome]:
    """What came of some hundred cases."""
    return attack(httpx.URL(server).port or 80, cases(COUNT, 1, TARGET))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stalled body"])
def test_malformed_requests_are_answered_as_they_must_be(outcomes: list[Outcome], kind: str) -> None:
    mine = [outcome for outcome in outcomes if outcome.case.kind == kind]
    assert len(mine) >= 3
    assert [(outcome.case.about, outcome.problem) for outcome in mine if outcome.problem] == []


def test_the_server_goes_on_after_them(outcomes: list[Outcome], server: str) -> None:
    answer = httpx.post(f"{server}/classify", files={"image": ("x.png", TARGET.image, "image/png")})
    assert answer.status_code == 200
    assert httpx.get(f"{server}/readyz").status_code == 200
    assert len(outcomes) == COUNT


def test_cases_depend_on_the_seed_and_nothing_else() -> None:
    first = cases(120, 5, TARGET)
    assert first == cases(200, 5, TARGET)[:120]
    assert [case.parts for case in first] != [case.parts for case in cases(120, 6, TARGET)]
    patient = Target(image=TARGET.image, shape=TARGET.shape, stall_s=1.0)
    assert {case.kind for case in cases(200, 5, patient)} == set(KINDS)


@pytest.mark.parametrize("name", hostile_images.BOMBS)
def test_a_bomb_is_small_and_says_that_it_is_large(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = hostile_images.BOMBS[name]()
    assert len(content) < 200_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb").write_bytes(content)
    try:
        with Image.open(tmp_path / "bomb") as image:
            assert image.width * image.height > 16_000_000 or name in hostile_images.HARMLESS
    except (OSError, ValueError, SyntaxError):  # Pillow itself sees that it cannot be
        assert name in ("PNG of no pixels", *hostile_images.HARMLESS)


def test_an_image_is_cut_somewhere() -> None:
    whole = {len(hostile_images.truncated(Random(i), TARGET).parts[0]) for i in range(50)}
    assert len(whole) > 20


@pytest.mark.parametrize(
    ("status", "head", "body", "problem"),
    [
        (400, HEAD, SHAPED, ""),
        (503, HEAD, SHAPED, ""),
        (500, HEAD, SHAPED, "status 500"),
        (502, HEAD, SHAPED, "status 502"),
        (200, HEAD, b"{}", "status 200, expected 400"),
        (404, HEAD, SHAPED, "status 404, expected 400"),
        (400, HEAD.replace(b"application/json", b"text/plain"), SHAPED, "not JSON"),
        (400, HEAD, b"[]", "another shape"),
        (400, HEAD, b"{", "another shape"),
        (400, HEAD, b'{"error": "it is bad"}', "another shape"),
        (400, HEAD, SHAPED.replace(b"send good", b""), "empty parts"),
        (400, HEAD, SHAPED.replace(b"it is bad", b"in /usr/lib/x"), "tells of the inside"),
        (503, HEAD, b"busy", "another shape"),
    ],
)
def test_an_answer_is_judged(status: int, head: bytes, body: bytes, problem: str) -> None:
    said = verdict(Case(about="", parts=(), expect=frozenset({400})), status, head, body)
    assert problem in said
    assert bool(said) == bool(problem)


def test_the_web_servers_own_errors_need_no_shape() -> None:
    case = Case(about="", parts=(), expect=frozenset({400}), shaped=False)
    assert verdict(case, 400, HEAD.replace(b"application/json", b"text/plain"), b"Invalid HTTP request received.") == ""
    assert verdict(case, 500, HEAD, SHAPED) != ""


def test_a_whole_request_is_what_h11_reads() -> None:
    """An independent parser reads the good request that most cases are made from."""
    import h11

    reader = h11.Connection(h11.SERVER)
    reader.receive_data(upload(TARGET.image, path="/classify?x=1"))
    request, data, end = reader.next_event(), reader.next_event(), reader.next_event()
    assert isinstance(request, h11.Request)
    assert isinstance(data, h11.Data)
    assert isinstance(end, h11.EndOfMessage)
    assert (request.method, request.target) == (b"POST", b"/classify?x=1")
    assert TARGET.image in bytes(data.data)
    assert message(b"abc", length=7).endswith(b"Content-Length: 7\r\n\r\nabc")
