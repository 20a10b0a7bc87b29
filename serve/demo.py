"""The page: see what a spiking network does with an image at every time step.

`python -m serve.demo [BUNDLE ...] [--port 7860]` shows it alone; the service shows the same page at /ui.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import fastapi
import gradio as gr
import numpy as np
import tyro

from serve import settings
from serve.batching import Overloaded
from serve.bundle import BundleError
from serve.models import Models
from serve.predictor import Prediction, Predictor
from serve.session import Provider
from serve.ui import page
from serve.ui.contenders import Contenders
from serve.ui.look import Run


AT_ONCE = 2 * settings.cores()
"""Images that the page alone runs at a time; more callers wait."""
PATIENCE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show the page of one bundle or several alone, without the HTTP service."""

    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[BUNDLE ...]")] = ()
    """Folders that `python -m export.bundle` wrote, to look at and to compare; by default what TSERVE_BUNDLE names,
    else runs/latest/bundle."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to the network."""
    port: int = 7860
    """Port to listen on."""
    provider: Provider | None = None
    """What runs the network: auto, cpu, cuda or tensorrt (serve/session.py); by default what TSERVE_PROVIDER says."""


def mount(app: fastapi.FastAPI, models: Models, run: Run, *, path: str, max_body: int) -> None:
    """Mount the page into `app` at `path`; to be called before the app's lifespan starts."""
    # Not bentoml.gradio.mount_gradio_app: it leaves pages of Gradio 6 without their theme.
    # root_path: without it Gradio, which guesses where it lies, leaves `path` out of its pictures' addresses.
    blocks = page.build(Contenders(models), run)
    gr.mount_gradio_app(app, blocks, path=path, root_path=path, **page.options(max_body))


def patient(at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> Run:
    """Run images where no batcher does: so many at a time, and Overloaded for who has waited too long."""
    places = threading.BoundedSemaphore(at_once)

    def run(predictor: Predictor, image: np.ndarray) -> Prediction:
        if not places.acquire(timeout=patience_s):
            raise Overloaded("others are being answered", retry_after_s=round(patience_s))
        try:
            return predictor.predict(image[None], exit_threshold=1.0)[0]
        finally:
            places.release()

    return run


def usable(sources: Sequence[str], provider: Provider | None) -> tuple[list[str], list[str]]:
    """Which sources can be opened, the first without a trial; and why the others cannot, in words."""
    good, notices = list(sources[:1]), []
    for source in sources[1:]:
        try:
            Models((*good, source), provider=provider).close()
            good.append(source)
        except BundleError as error:
            notices.append(f"There is nothing to compare with in {source}: {error}")
    return good, notices


def main(config: Config) -> int:
    """Serve the page until interrupted; returns the exit status."""
    try:
        told = settings.read()
        named = tuple(map(str, config.bundles))
        sources, notices = usable(named, config.provider) if named else (told.bundles, [])
        models = Models(sources, default=None if named else told.default_model, provider=config.provider)
        for words in notices:
            print(f"warning: {words}", file=sys.stderr)
        blocks = page.build(Contenders(models, provider=config.provider), patient(), notices)
        print(f"the page: http://{config.host}:{config.port} (Ctrl+C ends it)", flush=True)
        blocks.launch(server_name=config.host, server_port=config.port, quiet=True, **page.options(told.max_body))
    except (ValueError, OSError) as error:  # a bad bundle or setting; a port in use
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
