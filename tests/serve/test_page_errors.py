"""What goes wrong is said on the page, in a sentence, and the page goes on; in a real browser."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browsing
from serving_process import free_port
from synthetic import write_bundle

from serve import demo
from serve.batching import Overloaded
from serve.models import Models
from serve.predictor import Prediction, Predictor
from serve.ui import page as ui
from serve.ui.contenders import Contenders


pytestmark = pytest.mark.browser
MAX_BODY = 400_000


@dataclass
class Shown:
    """A page in this process, of a bundle that may be changed, beside which a broken one was named."""

    browsing: Browsing
    folder: Path
    models: Models
    trouble: list[Exception] = field(default_factory=list)
    """Raised by the next run of the network."""


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The page, kept open for all tests of this file."""
    base = tmp_path_factory.mktemp("shown")
    folder, broken = write_bundle(base / "bundle", samples=4), write_bundle(base / "broken", samples=4)
    (broken / "model.onnx").write_bytes(b"no network")
    sources, notices = demo.usable([str(folder), str(broken)], "cpu")
    models = Models(sources, provider="cpu")
    models.watch(0.1)
    port = free_port()
    told = Shown(Browsing(browser, f"http://127.0.0.1:{port}/"), folder, models)

    def run(predictor: Predictor, image: np.ndarray) -> Prediction:
        if told.trouble:
            raise told.trouble.pop()
        return predictor.predict(image[None], exit_threshold=1.0)[0]

    blocks = ui.build(Contenders(models, provider="cpu"), run, notices)
    blocks.launch(
        server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **ui.options(MAX_BODY)
    )
    told.browsing.resize(1280, 800)
    told.browsing.open()
    yield told
    blocks.close()
    models.close()


@pytest.fixture
def page(shown: Shown) -> Iterator[Browsing]:
    """The page; when something has gone wrong and been said, the next click works as ever."""
    yield shown.browsing
    if not shown.browsing.all("#samples button.thumbnail-item")[0].is_displayed():
        shown.browsing.source("Samples")
    for index in (2, 1):
        shown.browsing.sample(index)
    shown.browsing.until(lambda: shown.browsing.figure("probabilities"))
    assert shown.browsing.all("#answer [role=alert]") == []
    assert shown.browsing.complaints() == []


def said(page: Browsing) -> str:
    """The sentence in the place of the answer, or above it."""
    words: str = page.until(lambda: page.one("#answer [role=alert]").text)
    assert words.endswith(".")
    return words


def test_a_bundle_that_cannot_be_compared_with_is_named_above_the_page(page: Browsing) -> None:
    (notice,) = page.all("#notices [role=alert]")
    assert notice.text.startswith("There is nothing to compare with in")
    assert "model.onnx" in notice.text
    assert page.answer["image"].startswith("sample")
    page.tab("compare")
    page.until(lambda: "one network in one precision is served" in "".join(page.alerts()))
    page.tab("steps")


def test_a_network_that_knows_no_digits_has_no_sheet_to_draw_on(page: Browsing) -> None:
    assert [tab.text for tab in page.all("#sources [role=tab]") if tab.is_displayed()] == ["Samples", "File", "Camera"]


def test_a_file_that_is_no_image_is_refused(page: Browsing, tmp_path: Path) -> None:
    send(page, tmp_path / "broken.png", b"no image at all")
    assert "not an image" in said(page)
    assert str(tmp_path.root + "tmp") not in said(page)  # where the server keeps files is nobody's business


def test_an_image_of_countless_pixels_is_refused(page: Browsing, tmp_path: Path) -> None:
    send(page, tmp_path / "bomb.png", bomb(60_000))
    assert "pixels" in said(page)


def test_a_file_that_is_too_large_is_refused(page: Browsing, tmp_path: Path) -> None:
    page.sample(0)
    before = page.answer
    send(page, tmp_path / "huge.png", os.urandom(MAX_BODY + 1))
    page.until(lambda: any("size" in words for words in page.alerts() + toasts(page)))
    assert page.answer == before


def toasts(page: Browsing) -> list[str]:
    """What Gradio says at the edge of the page."""
    return [each.text for each in page.all(".toast-body")]


def send(page: Browsing, path: Path, content: bytes) -> None:
    """Choose a file with this content."""
    path.write_bytes(content)
    page.source("File")
    page.all("#upload input[type=file]")[0].send_keys(str(path))


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels; a few kB as a file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * 4), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("model=nobody", "has no network nobody; it has: shapes-synthetic-T3, fp32."),
        ("precision=int8", "has no network int8"),
        ("noise=abc", "noise must be a number from 0 to 0.5, got 'abc'"),
        ("t=x", "t must be a whole number from 1, got 'x'"),
        ("t=1.5", "t must be a whole number from 1, got '1.5'"),
        ("t=1e0", "t must be a whole number from 1, got '1e0'"),
        ("t=-3", "t must be a whole number from 1, got '-3'"),
        ("sample=999", "has no sample 999; it has samples 0 to 3"),
    ],
)
def test_an_address_that_cannot_be_shown_is_explained(page: Browsing, query: str, words: str) -> None:
    page.open(f"?{query}")
    assert words in said(page)
    if query != "sample=999":
        assert page.answer["image"] == "sample 0"  # below the sentence
        assert page.run("return document.body.dataset.t") == str(page.answer["steps_used"])


def test_a_layer_that_there_is_not_is_explained(page: Browsing) -> None:
    page.open("?layer=none")
    page.until(lambda: any("no layer 'none'; it has features.0.lif" in words for words in page.alerts()))
    page.tab("steps")
    page.until(lambda: "layer" not in page.driver.current_url)


def test_a_server_that_has_too_much_to_do_says_so(shown: Shown, page: Browsing) -> None:
    page.sample(0)  # another than the one that is shown, or the wait ends before its run, which would meet the trouble
    shown.trouble.append(Overloaded("257 images wait", retry_after_s=3))
    page.all("#samples button.thumbnail-item")[2].click()
    assert "too much to do" in said(page)
    assert "try again in 3 s" in said(page)
    assert page.all("figure.card") == []  # no figure of another image stays beside the sentence


def test_a_bundle_may_change_while_the_page_is_open(shown: Shown, page: Browsing, tmp_path: Path) -> None:
    page.open()
    page.sample(3)
    old = page.answer
    new = write_bundle(tmp_path / "new", samples=3, labels=("oak", "elm", "ash", "fir"), threshold=0.3)
    os.rename(shown.folder, tmp_path / "old")
    os.rename(new, shown.folder)
    page.until(lambda: shown.models.get().predictor.about.labels[0] == "oak")
    page.all("#samples button.thumbnail-item")[2].click()  # a picture that the new bundle does not have
    page.until(lambda: page.answer["bundle"] != old["bundle"])
    assert (page.answer["image"], page.answer["true_label"]) == ("sample 0", "oak")
    assert "has been replaced at the server" in page.one("#answer [role=alert]").text
    assert page.figure("probabilities")["labels"] == ["oak", "elm", "ash", "fir"]
    page.until(lambda: len(page.all("#samples button.thumbnail-item")) == 3)
    assert page.run("return document.querySelector('#threshold input[type=range]').value") == "0.3"
    (shown.folder / "bundle.json").write_text("{")  # a broken one is refused, and the page goes on with this one
    page.sample(2)
    assert page.answer["true_label"] == "ash"
    assert page.answer["bundle"] != old["bundle"]
