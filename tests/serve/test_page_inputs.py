"""Where the page takes its image from: what the browser sends may be anything."""

import base64
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import FileData
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic import LABELS, draw, png

from serve.predictor import Predictor
from serve.ui import inputs, sketch
from serve.ui.effects import Effects, disturb
from serve.ui.inputs import Picture


NOTHING: dict[str, Any] = {"source": None, "file": None, "camera": None, "sketch": None}


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    """Of shapes, which nobody draws."""
    return Predictor(bundle_dir)


@pytest.fixture(scope="module")
def of_digits(bundle_dir: Path) -> Predictor:
    """The same, as if the shapes were digits."""
    predictor = Predictor(bundle_dir)
    predictor.about = predictor.about.model_copy(update={"labels": ("0", "1", "2", "3")})
    return predictor


def picture(predictor: Predictor, *, effects: Effects = Effects(), **sent: Any) -> Picture:  # noqa: B008 (frozen)
    """What is chosen when the browser sends this, and nothing else."""
    return inputs.picture(predictor, effects=effects, **NOTHING | sent)


def data_url(data: bytes, kind: str = "png") -> str:
    """The file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def sheet() -> str:
    """Paper with a vertical stroke in black on nothing, left of the middle, as sketch.js sends it."""
    paper = np.zeros((sketch.PAPER, sketch.PAPER, 4), np.uint8)
    paper[40:240, 60:90, 3] = 255
    return data_url(png(paper))


def test_a_sample_comes_with_its_label(predictor: Predictor) -> None:
    for index in (0, 5):
        chosen = picture(predictor, source=f"sample:{index}")
        np.testing.assert_array_equal(chosen.image[0], draw(index).astype(np.float32) / np.float32(255))
        assert chosen.image is chosen.clean
        assert (chosen.truth, chosen.name) == (LABELS[index % 4], f"sample {index}")
        assert chosen.source == f"sample:{index}"


def test_effects_change_what_the_network_sees_and_keep_the_clean_image(predictor: Predictor) -> None:
    effects = Effects(noise=0.1, contrast=0.5)
    chosen, clean = picture(predictor, source="sample:1", effects=effects), picture(predictor, source="sample:1").image
    np.testing.assert_array_equal(chosen.clean, clean)
    np.testing.assert_array_equal(chosen.image, disturb(clean, effects))
    assert not np.array_equal(chosen.image, clean)


def test_a_file_is_decoded_as_the_endpoint_does(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a cat & dog.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)).save(path, "JPEG")
    chosen = picture(predictor, source="file", file=str(path), sketch=sheet(), camera="of no account")
    np.testing.assert_array_equal(chosen.image, predictor.decode(path.read_bytes()))
    assert (chosen.truth, chosen.name, chosen.source) == (None, "a cat & dog.jpg", "file")


def test_a_picture_of_the_camera_is_decoded_as_a_file(predictor: Predictor) -> None:
    data = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    chosen = picture(predictor, source="camera", camera=data_url(data))
    np.testing.assert_array_equal(chosen.image, predictor.decode(data))
    assert (chosen.truth, chosen.name) == (None, "camera")


def test_a_sketch_is_laid_out_as_the_samples(of_digits: Predictor) -> None:
    chosen = picture(of_digits, source="sketch", sketch=sheet())
    assert chosen.image.shape == of_digits.about.input.shape
    dark = float(np.median([of_digits.decode(of_digits.sample(i)).mean() for i in range(8)])) > 0.5
    columns = (1 - chosen.image if dark else chosen.image)[0].mean(axis=0)
    assert columns.argmax() in (3, 4)  # in the middle, wherever it was on the paper
    assert columns.max() > 0.4
    assert columns[[0, -1]].max() == 0
    assert (chosen.truth, chosen.name) == (None, "sketch")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ({}, "choose a sample, a file, the camera or a sketch"),
        ({"source": ""}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "<script>"}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:"}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:-1"}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:1\n"}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:٣"}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:" + "9" * 5000}, "choose a sample, a file, the camera or a sketch"),
        ({"source": "sample:8"}, "this model has no sample 8; it has samples 0 to 7"),
        ({"source": "file"}, "there is no file yet: choose an image"),
        ({"source": "file", "file": "gone.png"}, "the file is no longer on the server: choose it again"),
        ({"source": "file", "file": "."}, "the file is no longer on the server: choose it again"),
        ({"source": "file", "file": __file__}, "the file is not an image; send one of PNG"),
        ({"source": "camera"}, "there is no picture of the camera yet: take one"),
        ({"source": "camera", "camera": "https://example.org/a.png"}, "must be a data URL of a PNG or JPEG file"),
        ({"source": "camera", "camera": data_url(b"GIF89a")}, "the file is "),
        ({"source": "camera", "camera": data_url(png(np.zeros((1, 16_000_001), np.uint8)))}, "the image is too large"),
        ({"source": "sketch", "sketch": sheet()}, "this model does not know digits"),
    ],
)
def test_what_gives_no_image_is_told_in_a_sentence(predictor: Predictor, sent: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        picture(predictor, **sent)


@pytest.mark.parametrize("drawn", [None, "", data_url(png(np.zeros((280, 280, 4), np.uint8)))])
def test_clean_paper_is_no_digit(of_digits: Predictor, drawn: str | None) -> None:
    with pytest.raises(ValueError, match="the sketch is empty: draw a digit first"):
        picture(of_digits, source="sketch", sketch=drawn)


@given(st.text() | st.sampled_from(["file", "camera", "sketch"]) | st.from_regex("sample:[0-9]+"), st.text())
def test_whatever_is_sent_gives_an_image_or_a_sentence(predictor: Predictor, source: str, text: str) -> None:
    path = text.replace("/", "") or None  # Gradio lets no path pass but those of uploads
    said, shape = "", None
    try:
        shape = picture(predictor, source=source, file=path, camera=text, sketch=text).image.shape
    except ValueError as error:
        said = str(error)
    assert shape == predictor.about.input.shape or 10 < len(said) < 200


def test_a_model_without_samples_says_what_to_do(predictor: Predictor, bundle_dir: Path) -> None:
    bare = Predictor(bundle_dir)
    bare.about = bare.about.model_copy(update={"samples": (), "labels": ("0", "1", "2", "3")})
    with pytest.raises(ValueError, match="this model has no sample 0; it has none: use an image of your own"):
        picture(bare, source="sample:0")
    with pytest.raises(ValueError, match="this model has no samples, by which a sketch could be laid out"):
        picture(bare, source="sketch", sketch=sheet())
    assert inputs.gallery(bare) == []


def test_the_gallery_shows_the_samples_as_they_are(predictor: Predictor) -> None:
    shown = inputs.gallery(predictor)
    assert [label for _, label in shown] == [LABELS[i % 4] for i in range(8)]
    np.testing.assert_array_equal(np.asarray(shown[3][0]), draw(3))


def test_an_upload_is_handed_on_as_its_path_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's own makes an empty file at every event that brings the upload along, and never deletes it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks():
        file = inputs.build().file
    (tmp_path / "a.png").write_bytes(png(draw(0)))
    assert file.preprocess(FileData(path=str(tmp_path / "a.png"))) == str(tmp_path / "a.png")
    assert file.preprocess(None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_effects_of_a_fresh_page_are_none() -> None:
    with gr.Blocks():
        ours = inputs.build()
    assert Effects(noise=ours.noise.value, blur=ours.blur.value, contrast=ours.contrast.value) == Effects()
    Effects(noise=ours.noise.maximum, blur=ours.blur.maximum, contrast=ours.contrast.maximum)  # raises nothing
