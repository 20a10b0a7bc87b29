"""The HTTP service. `bentoml serve` from the repository root serves the bundle that TSERVE_BUNDLE names on port 3000.

POST /classify (multipart `image`), POST /classify_batch (JSON), GET /model, the page at /ui; from BentoML: the API's
description at / and /docs.json, /metrics, /livez, /readyz.
"""

import sys

import bentoml
import click
import fastapi

from serve import bundle, demo, intake
from serve.gate import Gate
from serve.predictor import Predictor, settings
from serve.schema import Classification, Served, ServedExit


web = fastapi.FastAPI(openapi_url=None)  # no pages of its own: BentoML shows its routes in /docs.json


@web.get("/model", response_model_exclude={"files", "samples"})
def model(request: fastapi.Request) -> Served:
    """Describe the bundle that is served: classes, steps, layers, accuracy, joules per operation, provider, exit."""
    predictor: Predictor = request.app.state.predictor
    exit = ServedExit(rule=predictor.exit.rule, threshold=predictor.exit.threshold, relax=predictor.exit.relax)
    served = {"precision": predictor.precision, "provider": predictor.provider, "exit": exit}
    return Served(**predictor.about.model_dump() | served)


@bentoml.service(name="tserve", workers=1, traffic={"timeout": 60})
@bentoml.asgi_app(web, path="/")
class TSERve:
    """Classify images with a spiking neural network and see what it did, one time step at a time."""

    def __init__(self) -> None:
        self.predictor = Predictor(bundle.locate())
        web.state.predictor = self.predictor
        demo.mount(web, self.predictor, path="/ui")

    @bentoml.api(input_spec=intake.ImageForm)
    @intake.answering_refusals
    def classify(self, image: bytes) -> Classification:
        """Classify one image file: PNG, JPEG, WebP, BMP, GIF or TIFF, at most 16 megapixels and 10 MB."""
        try:
            pixels = self.predictor.decode(image)
        except ValueError as error:
            raise intake.refused(error, code="bad_image", hint=intake.SEND_IMAGE) from None
        return Classification.of(self.predictor.predict(pixels[None])[0], self.predictor.about)

    @bentoml.api(input_spec=intake.ImageBatch)
    @intake.answering_refusals
    def classify_batch(self, images: bytes) -> list[Classification]:
        """Classify up to 256 images, a nested array [B, C, H, W] of numbers in [0, 1]; answers in their order."""
        try:
            pixels = self.predictor.check(intake.batch(images))
        except ValueError as error:
            raise intake.refused(error, code="bad_array", hint=intake.SEND_BATCH) from None
        return [Classification.of(prediction, self.predictor.about) for prediction in self.predictor.predict(pixels)]


def refuse_early() -> None:
    """End `bentoml serve` with one message and status 2 if what it was given cannot be served.

    The command imports this module before it starts workers; a worker that fails leaves two traces and a server that
    waits for ever. Other commands (`bentoml build`) and other importers need no bundle.
    """
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return
    try:
        settings(bundle.read(bundle.locate()).about)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


refuse_early()
TSERve.add_asgi_middleware(Gate)  # type: ignore[attr-defined]  # mypy takes no notice of class decorators
