"""What /metrics shows: counted here, for Prometheus.

Several workers add up where PROMETHEUS_MULTIPROC_DIR names their folder, as BentoML sets it for its own: counters of a
worker that has ended stay, its gauges go. No label's value comes from a client: none can make the metrics grow.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serve.bundle import Description
from serve.predictor import Prediction


PAGE = "/ui"
OTHER = "other"
ENDPOINTS = frozenset(
    {
        "/",
        "/classify",
        "/classify_batch",
        "/docs.json",
        "/healthz",
        "/livez",
        "/metrics",
        "/model",
        "/models",
        "/readyz",
    }
)
_MOST_REASONS = 100  # the server knows fewer codes
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REGISTRY = CollectorRegistry()
REQUESTS = Counter("tserve_requests", "Requests answered, by HTTP status.", ["endpoint", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "tserve_request_seconds",
    "From a request's headers to the end of its answer; of the page, to the answer's beginning.",
    ["endpoint"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
IN_PROGRESS = Gauge(
    "tserve_requests_in_progress",
    "Requests that are being answered, but for those of the page and for metrics.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
REJECTED = Counter("tserve_rejected", "Errors answered, by their code.", ["reason"], registry=REGISTRY)
IMAGES = Counter("tserve_images", "Images classified.", ["model"], registry=REGISTRY)
STEPS_USED = Histogram(
    "tserve_steps_used", "Time steps that an image took.", ["model"], buckets=range(1, 17), registry=REGISTRY
)
FIRING_RATE = Histogram(
    "tserve_firing_rate",
    "Spikes per neuron and time step of an image, mean over the layers.",
    ["model"],
    buckets=(0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1),
    registry=REGISTRY,
)
SOPS = Counter("tserve_sops", "Synaptic operations that only add.", ["model"], registry=REGISTRY)
ENERGY = Counter("tserve_energy_joules", "Estimated energy of the images, joules.", ["model"], registry=REGISTRY)
ANN_ENERGY = Counter(
    "tserve_ann_energy_joules",
    "Estimated energy of the same images in the ANN of the same architecture, joules.",
    ["model"],
    registry=REGISTRY,
)
BATCH_IMAGES = Histogram(
    "tserve_batch_images", "Images in a run.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), registry=REGISTRY
)
RUN_SECONDS = Histogram("tserve_run_seconds", "A run of one time step.", buckets=_SECONDS, registry=REGISTRY)
QUEUE_IMAGES = Gauge("tserve_queue_images", "Images that wait.", multiprocess_mode="livesum", registry=REGISTRY)
QUEUE_SECONDS = Histogram("tserve_queue_seconds", "An image's wait for its run.", buckets=_SECONDS, registry=REGISTRY)
SERVED = Gauge(
    "tserve_served",
    "1 for what is served, 0 for what was.",
    ["model", "bundle", "precision", "provider"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
SWAPS = Counter("tserve_swaps", "New, replaced, refused and dropped bundles.", ["model", "outcome"], registry=REGISTRY)

for _gauge in (IN_PROGRESS, QUEUE_IMAGES):
    _gauge.set(0)  # of several workers, this one may have the process id, and so the file, of one that has ended

_requests: dict[tuple[str, int], Counter] = {}
_seconds = {endpoint: REQUEST_SECONDS.labels(endpoint) for endpoint in (*ENDPOINTS, PAGE, OTHER)}
_reasons: dict[str, Counter] = {}
_served: set[tuple[str, str, str, str]] = set()


class Runs(Protocol):
    """The part of a predictor that `serving` shows."""

    @property
    def id(self) -> str:
        """The bundle's id."""

    @property
    def precision(self) -> str:
        """What is run: fp32, fp16, int8."""

    @property
    def provider(self) -> str:
        """onnxruntime's execution provider."""


class Load:
    """The batcher's watch (serve.batching.Watch); safe in several threads."""

    def __init__(self) -> None:
        self.waiting: Callable[[], int] = lambda: 0
        """Images that wait; the batcher's, once there is one."""

    def ran(self, images: int, seconds: float) -> None:
        """One run of the network, of one time step."""
        BATCH_IMAGES.observe(images)
        RUN_SECONDS.observe(seconds)
        QUEUE_IMAGES.set(self.waiting())

    def waited(self, seconds: float) -> None:
        """One image has begun, so long after it was submitted."""
        QUEUE_SECONDS.observe(seconds)


def endpoint_of(path: str) -> str:
    """The label of a path: one of ENDPOINTS, PAGE or OTHER."""
    if path in ENDPOINTS:
        return path
    return PAGE if is_page(path) else OTHER


def is_page(path: str) -> bool:
    """Whether a path is the page's or of something that it loads."""
    return path == PAGE or path.startswith("/ui/")


def done(endpoint: str, status: int, seconds: float) -> None:
    """Count one answer; `endpoint` as `endpoint_of` gives it."""
    counter = _requests.get((endpoint, status))
    if counter is None:
        counter = _requests[endpoint, status] = REQUESTS.labels(endpoint, str(status))
    counter.inc()
    _seconds[endpoint].observe(seconds)


def rejected(code: str) -> None:
    """Count one error by its code."""
    counter = _reasons.get(code)
    if counter is None:
        if len(_reasons) >= _MOST_REASONS:
            code = OTHER
        counter = _reasons[code] = REJECTED.labels(code)
    counter.inc()


def answered(name: str, about: Description, predictions: Iterable[Prediction]) -> None:
    """Count the images that one model, under the name that it is served by, has answered."""
    steps, rates = STEPS_USED.labels(name), FIRING_RATE.labels(name)
    images, sops, energy = 0, 0, 0.0
    for prediction in predictions:
        steps.observe(len(prediction.logits))
        rates.observe(float(prediction.spike_rates.mean()))
        images += 1
        sops += prediction.sops
        energy += prediction.energy_J
    IMAGES.labels(name).inc(images)
    SOPS.labels(name).inc(sops)
    ENERGY.labels(name).inc(energy)
    ANN_ENERGY.labels(name).inc(images * about.energy.ann_energy_J)


def serving(models: Mapping[str, Runs]) -> None:
    """Show what is served, name -> predictor, in place of what was."""
    now = {(name, runs.id, str(runs.precision), runs.provider) for name, runs in models.items()}
    for labels in _served - now:
        SERVED.labels(*labels).set(0)
    for labels in now:
        SERVED.labels(*labels).set(1)
    _served.update(now)


def swapped(name: str, outcome: str) -> None:
    """Count what became of a bundle: loaded, swapped, refused, dropped."""
    SWAPS.labels(name, outcome).inc()


def render() -> tuple[bytes, str]:
    """All of it in Prometheus' text format, of all workers, and the content type; reads files, so not in the loop."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    _forget_the_dead(Path(folder))
    everybody = CollectorRegistry()
    MultiProcessCollector(everybody)
    return generate_latest(everybody), CONTENT_TYPE_LATEST


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of workers that have ended, however they did."""
    for file in folder.glob("gauge_live*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            file.unlink(missing_ok=True)  # mark_process_dead raises if another worker was quicker


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
