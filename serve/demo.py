"""The page: pick a sample or upload an image and see what the spiking network does at every time step.

`python -m serve.demo [BUNDLE] [--port 7860]` shows it alone; the service shows the same page at /ui.
"""

import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import fastapi
import gradio as gr
import numpy as np
import tyro

from serve import bundle, images, plots
from serve.gate import MAX_BODY
from serve.predictor import Predictor
from serve.session import Provider


UPLOADS_KEPT_S = (60, 600)  # looked through every minute; an upload stays on disk ten minutes


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show the page of a bundle alone, without the HTTP service."""

    bundle: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[BUNDLE]")] = None
    """Folder that `python -m export.bundle` wrote; by default what TSERVE_BUNDLE names, else runs/latest/bundle."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to the network."""
    port: int = 7860
    """Port to listen on."""
    provider: Provider | None = None
    """What runs the network: auto, cpu, cuda or tensorrt (serve/session.py); by default what TSERVE_PROVIDER says."""


def build(predictor: Predictor) -> gr.Blocks:
    """Build the page over a predictor; it shows the first sample's result from the start."""
    about, samples = predictor.about, predictor.about.samples

    def show(array: np.ndarray, truth: str | None) -> str:
        prediction = predictor.predict(array[None], exit_threshold=1.0)[0]  # the page shows every step
        return plots.report(prediction, about, picture=images.encode(array), truth=truth)

    def show_sample(index: int) -> str:
        return show(predictor.decode(predictor.bundle.sample_file(index)), samples[index].label)

    def on_sample(event: gr.SelectData) -> tuple[str, None]:
        return show_sample(int(event.index)), None  # no upload any more

    def on_upload(path: str) -> tuple[str, gr.Gallery]:
        try:
            html = show(predictor.decode(Path(path)), None)
        except ValueError as error:
            html = plots.alert(f"That file cannot be classified: {error}.")
        return html, gr.Gallery(selected_index=None)

    first = show_sample(0) if samples else plots.alert("This bundle has no samples: drop an image of your own.")
    with gr.Blocks(title=f"TSERve: {about.name}", analytics_enabled=False, delete_cache=UPLOADS_KEPT_S) as page:
        gr.HTML(_header(predictor), padding=False, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                gr.HTML("<div class='page-step'>Pick a sample of the test set</div>", padding=False)
                gallery = gr.Gallery(
                    [(predictor.bundle.sample_file(i), sample.label) for i, sample in enumerate(samples)],
                    show_label=False,
                    columns=5,
                    object_fit="contain",
                    allow_preview=False,
                    selected_index=0 if samples else None,
                    interactive=False,
                    buttons=[],
                    elem_id="samples",
                )
                upload = gr.File(
                    label="Or drop an image of your own", file_types=["image"], height=140, elem_id="upload"
                )
            with gr.Column(scale=4):
                result = gr.HTML(first, padding=False, elem_id="result")
        gallery.select(on_sample, None, [result, upload], api_visibility="private", show_progress="hidden")
        upload.upload(on_upload, upload, [result, gallery], api_visibility="private", show_progress="hidden")
    return page


def mount(app: fastapi.FastAPI, predictor: Predictor, *, path: str) -> None:
    """Mount the page into `app` at `path`; to be called before the app's lifespan starts."""
    # Not bentoml.gradio.mount_gradio_app: it leaves pages of Gradio 6 without their theme.
    gr.mount_gradio_app(app, build(predictor), path=path, **_page_options())


def main(config: Config) -> int:
    """Serve the page until interrupted; returns the exit status."""
    try:
        page = build(Predictor(config.bundle or bundle.locate(), provider=config.provider))
        print(f"the page: http://{config.host}:{config.port} (Ctrl+C ends it)", flush=True)
        page.launch(server_name=config.host, server_port=config.port, quiet=True, **_page_options())
    except (ValueError, OSError) as error:  # a bad bundle or setting; a port in use
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _page_options() -> dict[str, Any]:
    """What Gradio 6 takes where a page is shown, not where it is built. Fonts are local: no request leaves."""
    return {
        "theme": gr.themes.Default(font=["Arial", "sans-serif"], font_mono=["monospace"]),
        "css": plots.CSS,
        "footer_links": [],
        "run_history": False,
        "max_file_size": MAX_BODY,
        "show_error": True,
    }


def _header(predictor: Predictor) -> str:
    about = predictor.about
    facts = (
        f"{about.name}: a spiking network of {len(about.lif_layers)} spiking layers on {about.dataset}, "
        f"{about.T} time steps, {100 * about.metrics.accuracy:.1f} % of the test set right, "
        f"{predictor.precision} on {predictor.provider.removesuffix('ExecutionProvider')}."
    )
    return f'<div class="page-head"><b>TSERve</b> <span>{escape(facts)}</span></div>'


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
