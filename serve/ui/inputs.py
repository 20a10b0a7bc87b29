"""The left column of the page: where the image comes from, and how it is disturbed before the network sees it.

Camera and sketch are small components of our own, which send a data URL. Gradio's own would hand their file to Pillow
before a limit of serve.images is looked at; its camera leaves pictures of people on the server's disk, and its sketch
lies in the memory of one worker process, where the next one does not find it.
"""

import io
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from PIL import Image

from serve.predictor import Predictor
from serve.ui import sketch
from serve.ui.effects import BLUR, CONTRAST, NOISE, Effects, disturb


FILE, CAMERA, SKETCH = "file", "camera", "sketch"
_SAMPLE = re.compile("sample:([0-9]{1,6})")
_CAMERA_HTML = """
<div class="camera">
  <div class="sheet"><video muted playsinline hidden></video><img alt="The picture that was taken" hidden></div>
  <button type="button">Start the camera</button>
  <p role="status"></p>
</div>
"""
_SKETCH_HTML = f"""
<div class="sketch">
  <canvas class="sheet" width="{sketch.PAPER}" height="{sketch.PAPER}" role="img"
    aria-label="Paper to draw a digit on, with mouse, pen or finger"></canvas>
  <button type="button">Clear</button>
</div>
"""
_OWN_CSS = """
.sheet { display: block; box-sizing: border-box; width: 100%; max-width: 260px; aspect-ratio: 1; margin: 0 auto;
  border: 1px solid var(--border-color-primary); border-radius: 6px; background: white; overflow: hidden; }
canvas.sheet { touch-action: none; cursor: crosshair; }
.camera .sheet { background: var(--background-fill-secondary); }
video, img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
[hidden] { display: none; }
button { display: block; width: 100%; max-width: 260px; margin: 6px auto 0; padding: 6px; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); font: inherit; cursor: pointer; }
button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
p { margin: 6px 0 0; font-size: 13px; }
"""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The components of the column."""

    source: gr.Textbox
    """Which of the images is meant: "sample:3", "file", "camera" or "sketch". Not seen."""
    draw_tab: gr.Tab
    """To be shown only where `sketch.draws(about)`."""
    gallery: gr.Gallery
    file: gr.File
    camera: gr.HTML
    """Its value is a data URL, "" before the first picture; `change` tells of a new one."""
    sketch: gr.HTML
    """The same, "" for clean paper."""
    noise: gr.Slider
    blur: gr.Slider
    contrast: gr.Slider
    reset: gr.Button


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """The image that was chosen."""

    image: np.ndarray
    """What the network sees: float32 [C, H, W] in [0, 1]."""
    clean: np.ndarray
    """The same before the effects; the same array where there are none."""
    truth: str | None
    """The label of a sample; of others nobody knows it."""
    name: str
    source: str


def build() -> Inputs:
    """Create the components inside the current column; what they do is wired elsewhere."""
    source = gr.Textbox(visible="hidden", elem_id="source")
    with gr.Tabs(elem_id="sources"):
        with gr.Tab("Samples", id="samples"):
            gallery = gr.Gallery(
                show_label=False,
                columns=5,
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
                format="png",
                elem_id="samples",
            )
        with gr.Tab("File", id=FILE):
            file = gr.File(label="An image of your own", file_types=["image"], height=140, elem_id="upload")
            file.preprocess = _path  # type: ignore[method-assign,assignment]  # Gradio's leaves an empty file a call
        with gr.Tab("Camera", id=CAMERA):
            camera = _own("camera", _CAMERA_HTML)
        with gr.Tab("Draw", id=SKETCH, visible=False) as draw_tab:
            drawing = _own("sketch", _SKETCH_HTML)
    with gr.Column(elem_id="effects"):
        noise = slider(0, NOISE, Effects.noise, step=0.01, label="Noise (std; white is 1)")
        blur = slider(0, BLUR, Effects.blur, step=0.1, label="Blur (sigma, pixels)")
        contrast = slider(0, CONTRAST, Effects.contrast, step=0.05, label="Contrast (times)")
        reset = gr.Button("Reset", size="sm", elem_id="reset")
    return Inputs(
        source=source,
        draw_tab=draw_tab,
        gallery=gallery,
        file=file,
        camera=camera,
        sketch=drawing,
        noise=noise,
        blur=blur,
        contrast=contrast,
        reset=reset,
    )


def slider(least: float, most: float, value: float, **how: Any) -> gr.Slider:
    """A slider whose value is judged where it is used: Gradio answers one beyond its ends with a trace in the log."""
    made = gr.Slider(least, most, value, buttons=[], **how)
    made.preprocess = lambda payload: payload  # type: ignore[method-assign]  # no class of our own: Gradio writes a file for it
    return made


def gallery(predictor: Predictor) -> list[tuple[Image.Image, str]]:
    """The samples with their labels, for gr.Gallery."""
    return [
        (Image.open(io.BytesIO(predictor.sample(index))), sample.label)
        for index, sample in enumerate(predictor.about.samples)
    ]


def picture(
    predictor: Predictor,
    *,
    source: str | None,
    file: str | None,
    camera: str | None,
    sketch: str | None,
    effects: Effects,
) -> Picture:
    """Give the image that `source` names, disturbed. Everything but `predictor` comes from a browser.

    `file` is a path that Gradio has checked to be an upload, `camera` and `sketch` are data URLs. Raises ValueError,
    its message a sentence for the page, where there is no such image or none that can be used.
    """
    clean, truth, name = _clean(predictor, source or "", file=file, camera=camera, drawn=sketch)
    return Picture(image=disturb(clean, effects), clean=clean, truth=truth, name=name, source=source or "")


def _clean(
    predictor: Predictor, source: str, *, file: str | None, camera: str | None, drawn: str | None
) -> tuple[np.ndarray, str | None, str]:
    """(image, true label, name)."""
    samples = predictor.about.samples
    if chosen := _SAMPLE.fullmatch(source):
        index = int(chosen[1])
        if index >= len(samples):
            have = f"it has samples 0 to {len(samples) - 1}" if samples else "it has none: use an image of your own"
            raise ValueError(f"this model has no sample {index}; {have}")
        return predictor.decode(predictor.sample(index)), samples[index].label, f"sample {index}"
    if source == FILE:
        if not file:
            raise ValueError("there is no file yet: choose an image")
        return predictor.decode(_content(Path(file))), None, Path(file).name
    if source == CAMERA:
        if not camera:
            raise ValueError("there is no picture of the camera yet: take one")
        return predictor.decode(sketch.content(camera)), None, "camera"
    if source == SKETCH:
        if not sketch.draws(predictor.about):
            raise ValueError("this model does not know digits: choose an image instead of drawing one")
        if not drawn:
            raise ValueError(sketch.EMPTY)
        ink = sketch.Ink.of([predictor.decode(predictor.sample(index)) for index in range(len(samples))])
        return sketch.to_image(sketch.read(drawn), predictor.about.input, ink), None, "sketch"
    raise ValueError("choose a sample, a file, the camera or a sketch")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # uploads are not kept for long
        raise ValueError("the file is no longer on the server: choose it again") from None


def _path(payload: FileData | None) -> str | None:
    return payload.path if payload else None


def _own(name: str, html: str) -> gr.HTML:
    """A component of our own: what of it is in serve/ui/NAME.js sets its value, a text."""
    script = (files(__package__) / f"{name}.js").read_text()
    return gr.HTML("", html_template=html, css_template=_OWN_CSS, js_on_load=script, elem_id=name)
