"""The page: pick a sample or upload an image and see what the spiking network does at every time step.

`python -m serve.demo [BUNDLE] [--port 7860]` shows it alone; the service shows the same page at /ui.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import fastapi
import gradio as gr
import numpy as np
import tyro
from PIL import Image

from serve import images, plots, settings
from serve.models import Models
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


def build(current: Callable[[], Predictor]) -> gr.Blocks:
    """Build the page over `current`, which gives the predictor to use now; the first sample's result stands ready.

    Where a bundle is replaced while the page is open, the next click shows the new one.
    """

    def show(predictor: Predictor, array: np.ndarray, truth: str | None) -> str:
        prediction = predictor.predict(array[None], exit_threshold=1.0)[0]  # the page shows every step
        return plots.report(prediction, predictor.about, picture=images.encode(array), truth=truth)

    def show_sample(predictor: Predictor, index: int) -> str:
        if not predictor.about.samples:
            return plots.alert("This bundle has no samples: drop an image of your own.")
        sample = predictor.about.samples[index]
        return show(predictor, predictor.decode(predictor.sample(index)), sample.label)

    def fresh(predictor: Predictor) -> tuple[Any, ...]:
        """Everything that depends on the bundle: head, samples, result, and which bundle that is."""
        pictures = [
            (Image.open(io.BytesIO(predictor.sample(index))), sample.label)
            for index, sample in enumerate(predictor.about.samples)
        ]
        gallery = gr.Gallery(pictures, selected_index=0 if pictures else None)
        return _header(predictor), gallery, show_sample(predictor, 0), predictor.id

    def on_sample(event: gr.SelectData, shown: str) -> tuple[Any, ...]:
        predictor = current()
        if predictor.id != shown:  # the pictures on the page are another bundle's
            return *fresh(predictor), None
        return gr.skip(), gr.skip(), show_sample(predictor, int(event.index)), shown, None  # no upload any more

    def on_upload(path: str) -> tuple[str, gr.Gallery]:
        predictor = current()
        try:
            html = show(predictor, predictor.decode(Path(path)), None)
        except ValueError as error:
            html = plots.alert(f"That file cannot be classified: {error}.")
        return html, gr.Gallery(selected_index=None)

    title = f"TSERve: {current().about.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=UPLOADS_KEPT_S) as page:
        shown = gr.State("")
        head = gr.HTML(padding=False, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                gr.HTML("<div class='page-step'>Pick a sample of the test set</div>", padding=False)
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
                upload = gr.File(
                    label="Or drop an image of your own", file_types=["image"], height=140, elem_id="upload"
                )
            with gr.Column(scale=4):
                result = gr.HTML(padding=False, elem_id="result")
        bundle_parts = [head, gallery, result, shown]
        page.load(lambda: fresh(current()), None, bundle_parts, api_visibility="private", show_progress="hidden")
        gallery.select(on_sample, shown, [*bundle_parts, upload], api_visibility="private", show_progress="hidden")
        upload.upload(on_upload, upload, [result, gallery], api_visibility="private", show_progress="hidden")
    return page


def mount(app: fastapi.FastAPI, current: Callable[[], Predictor], *, path: str, max_body: int) -> None:
    """Mount the page into `app` at `path`; to be called before the app's lifespan starts."""
    # Not bentoml.gradio.mount_gradio_app: it leaves pages of Gradio 6 without their theme.
    gr.mount_gradio_app(app, build(current), path=path, **_page_options(max_body))


def main(config: Config) -> int:
    """Serve the page until interrupted; returns the exit status."""
    try:
        told = settings.read()
        sources = (str(config.bundle),) if config.bundle else told.bundles
        models = Models(sources, default=None if config.bundle else told.default_model, provider=config.provider)
        page = build(lambda: models.get().predictor)
        print(f"the page: http://{config.host}:{config.port} (Ctrl+C ends it)", flush=True)
        page.launch(
            server_name=config.host, server_port=config.port, quiet=True, **_page_options(settings.read().max_body)
        )
    except (ValueError, OSError) as error:  # a bad bundle or setting; a port in use
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _page_options(max_body: int) -> dict[str, Any]:
    """What Gradio 6 takes where a page is shown, not where it is built. Fonts are local: no request leaves."""
    return {
        "theme": gr.themes.Default(font=["Arial", "sans-serif"], font_mono=["monospace"]),
        "css": plots.CSS,
        "footer_links": [],
        "run_history": False,
        "max_file_size": max_body,
        "show_error": True,
    }


def _header(predictor: Predictor) -> str:
    about = predictor.about
    all_steps = max(about.exits[predictor.precision].table, key=lambda row: row.mean_steps)  # as the page runs them
    facts = (
        f"{about.name}: a spiking network of {len(about.lif_layers)} spiking layers on {about.dataset}, "
        f"{about.T} time steps, {100 * all_steps.accuracy:.1f} % of the test set right, "
        f"{predictor.precision} on {predictor.provider.removesuffix('ExecutionProvider')}."
    )
    return f'<div class="page-head"><b>TSERve</b> <span>{escape(facts)}</span></div>'


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
