"""The HTTP service. `bentoml serve` from the repository root serves the bundles that TSERVE_BUNDLE names on port 3000.

POST /classify and /classify_batch, GET /model and /models, the page at /ui, /metrics, /docs.json and its page at /, and
from BentoML /livez and /readyz. docs/serving.md has the settings and what to put where.
"""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import bentoml
import fastapi
import numpy as np
from starlette.responses import JSONResponse, Response

from serve import demo, ending, launch, log, metrics
from serve.batching import Batcher, Overloaded
from serve.models import Models, Outcome, Served, UnknownModel
from serve.predictor import Prediction, Predictor
from serve.session import CPU, threads
from serve.settings import Settings, cores
from serve.web import intake, openapi, openapi_page, schema
from serve.web.gate import Front, Gate
from serve.web.intake import Ask
from serve.web.schema import Classification, ModelList, ServedModel, model_entry
from serve.web.shape import busy


CPU_BATCH, GPU_BATCH = 4, 64
FEW = 16
"""Answers that are put into words at once; the loop has others to serve while more are."""
counting = ThreadPoolExecutor(1, "serve.metrics")  # of its own: who watches must see a server that is busy, too
settings = launch.prepare()
front = Front()  # what the gate asks the service
web = fastapi.FastAPI(openapi_url=None)  # its routes come before BentoML's own


@bentoml.service(
    name="tserve",
    workers=settings.workers,
    # The gate counts and logs. BentoML's own metrics take every path that a client asks for as a label, for ever.
    metrics={"enabled": False, "namespace": "bentoml_service"},
    logging={"access": {"enabled": False}},
    # A span for every request, which nobody collects, is a fifth of the web server's work.
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(web, path="/")
class TSERve:
    """Classify images with a spiking neural network and see what it did, one time step at a time."""

    def __init__(self) -> None:
        log.configure()
        log.take_over()
        self.load = metrics.Load()
        self.models = Models(settings.bundles, default=settings.default_model, on_change=self.changed)
        shared = shares(settings, provider=self.models.get().predictor.provider)
        self.batcher = Batcher(**shared, max_waiting=settings.queue, watch=self.load)
        self.load.waiting = lambda: self.batcher.waiting
        self.changed()
        self.models.watch(settings.watch_s)
        demo.mount(web, self.models, self.all_steps, path="/ui", max_body=settings.max_body)
        web.state.models = self.models
        front.retry_after = self.batcher.retry_after
        front.places = settings.queue + shared["runners"] * shared["max_batch"]
        # What is there now stays: 190,000 objects of libraries, which a full collection would look through for 100 ms.
        gc.collect()
        gc.freeze()
        # A body may take its time to arrive, and then an answer.
        ending.on_signal(front.ending.set, grace_s=2 * settings.timeout_s)
        front.ready = True  # every model that is served has answered a blank image, in both forms

    @bentoml.api(input_spec=intake.OneImage)
    @intake.answering_refusals
    async def classify(self, ask: Ask) -> Classification:
        """Classify one image."""
        return schema.respond((await self.answer(ask))[0])  # type: ignore[return-value]  # what BentoML documents

    @bentoml.api(input_spec=intake.SeveralImages)
    @intake.answering_refusals
    async def classify_batch(self, ask: Ask) -> list[Classification]:
        """Classify up to 256 images; answers in their order."""
        return schema.respond(await self.answer(ask))  # type: ignore[return-value]

    async def answer(self, ask: Ask) -> list[Classification]:
        """Answer a request by one model as it is now, whatever becomes of its bundle meanwhile. Raises Refusal."""
        served = model_of(self.models, ask.model)
        predictor, options = served.predictor, ask.options
        images = await intake.pixels(ask, predictor)
        try:
            future = self.batcher.submit(predictor, images, exit_threshold=options.exit_confidence, steps=options.steps)
        except Overloaded as error:
            raise busy("overloaded", str(error), retry_after_s=error.retry_after_s) from None
        except ValueError as error:
            raise intake.bad_option(error) from None
        predictions = await asyncio.wrap_future(future)
        metrics.answered(served.name, predictor.about, predictions)

        def classifications() -> list[Classification]:
            said = partial(Classification.of, about=predictor.about, options=options, bundle=predictor.id)
            return [said(prediction) for prediction in predictions]

        return classifications() if len(predictions) <= FEW else await asyncio.to_thread(classifications)

    def all_steps(self, predictor: Predictor, image: np.ndarray) -> Prediction:
        """What the page shows: every step of one image [C, H, W]; in the queue with everybody. Raises Overloaded."""
        future = self.batcher.submit(predictor, image[None], exit_threshold=1.0, steps=None)
        try:
            return future.result(settings.timeout_s)[0]
        except TimeoutError:
            future.cancel()
            raise Overloaded("others are being answered", retry_after_s=self.batcher.retry_after() or 1) from None

    def changed(self, name: str | None = None, outcome: Outcome | None = None) -> None:
        """Count what became of a bundle, and show what is served now."""
        if name and outcome:
            metrics.swapped(name, outcome)
        if hasattr(self, "models"):  # which tells of its first ones while it is made
            metrics.serving({name: served.predictor for name, served in self.models.all().items()})

    @bentoml.on_shutdown
    def close(self) -> None:
        """Finish what was accepted."""
        front.ready = False
        self.models.close()
        self.batcher.close()


def shares(settings: Settings, *, provider: str) -> dict[str, int]:
    """How many runs at a time, and of how many images: on a CPU one for each core, on a GPU one of many images."""
    on_cpu = provider == CPU
    cores_each = max(1, cores() // threads() // settings.workers)
    return {
        "runners": settings.runners or (cores_each if on_cpu else 1),
        "max_batch": settings.max_batch or (CPU_BATCH if on_cpu else GPU_BATCH),
    }


def model_of(models: Models, name: str | None) -> Served:
    """The model that a request asks for; Refusal for one that is not served."""
    try:
        return models.get(name)
    except UnknownModel as error:
        raise intake.unknown_model(error) from None


@web.get("/model")
@intake.answering_refusals
async def model(request: fastapi.Request) -> Response:
    """Describe a model: classes, steps, layers, accuracy, joules per operation, provider, exit."""
    served = model_of(request.app.state.models, intake.asked_model(request))
    about = ServedModel.of(served.predictor, model=served.name, since=served.since)
    # Without the coefficients of every layer, by which the page prices an image: twenty kilobytes.
    content = about.model_dump_json(exclude={"energy": {"conventions": {"__all__": {"layers"}}}})
    return Response(content, media_type="application/json")


@web.get("/models")
async def models(request: fastapi.Request) -> ModelList:
    """List what is served."""
    models: Models = request.app.state.models
    entries = [model_entry(each.predictor, model=each.name, since=each.since) for each in models.all().values()]
    return ModelList(default=models.default, models=entries)


@web.get("/metrics")
async def prometheus() -> Response:
    """Give what was counted."""
    content, kind = await asyncio.get_running_loop().run_in_executor(counting, metrics.render)
    return Response(content, headers={"content-type": kind})


@web.get("/docs.json")
async def docs(request: fastapi.Request) -> JSONResponse:
    """Describe the API for the models that are served."""
    return JSONResponse(document(request))


@web.get("/")
async def index(request: fastapi.Request) -> Response:
    """Show that description as a page."""
    return openapi_page.page(document(request))


def document(request: fastapi.Request) -> dict[str, Any]:
    """The OpenAPI document: shapes, steps and names are those of the models that are served now."""
    models: Models = request.app.state.models
    return openapi.document({name: served.predictor.about for name, served in models.all().items()})


TSERve.add_asgi_middleware(Gate, settings=settings, front=front)  # type: ignore[attr-defined]  # mypy takes no notice of class decorators
