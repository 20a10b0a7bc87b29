"""onnxruntime alone, as benchmarks/serve_load.py holds the service against it: the network, and nothing around it.

Callers are threads that hand in pixels that are ready, on the sessions' own files and settings: as many threads a run
as the service uses, none of them spinning.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serve_client import Report, Sample, pin


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_bundle: "Raw | None" = None
Run = Callable[[np.ndarray], int]
"""One image [1, C, H, W] -> steps used."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A bundle's two models of one precision, and images for them."""

    all_steps: Run
    """The unrolled form: all T steps in one run."""
    anytime: Run
    """The step form, until the image is sure by the bundle's own exit."""
    images: tuple[np.ndarray, ...]


def prepare(
    folder: Path, precision: str, threads: int, pictures: Sequence[bytes], provider: str, cores: Sequence[int]
) -> None:
    """Open the sessions in this process, on these cores; `measure` uses them."""
    global _bundle
    pin(cores)
    _bundle = open_bundle(folder, precision, threads=threads, pictures=pictures, provider=provider)


def measure(form: str, *, callers: int, number: int, seconds: float) -> Report:
    """Let `callers` threads run `form` ("all_steps" or "anytime") until `number` runs or `seconds` are over."""
    assert _bundle is not None, "prepare() comes first"
    run, images, samples = getattr(_bundle, form), _bundle.images, []
    turns = itertools.count()  # next() of it is atomic
    for image in images[:3]:
        run(image)  # brings weights and code back into the caches
    end = time.monotonic() + seconds

    def call() -> None:
        while time.monotonic() < end and (turn := next(turns)) < number:
            place = turn % len(images)
            began = time.monotonic()
            steps = run(images[place])
            took = time.monotonic() - began
            samples.append(Sample(began, began, took, 200, "", place, "", {"steps_used": steps}))

    cpu, began = time.process_time(), time.monotonic()
    crew = [threading.Thread(target=call) for _ in range(callers)]
    for caller in crew:
        caller.start()
    for caller in crew:
        caller.join()
    return Report(
        samples=samples, wall_s=time.monotonic() - began, cpu_s=time.process_time() - cpu, loop=f"{callers} threads"
    )


def open_bundle(
    folder: Path, precision: str, *, threads: int, pictures: Sequence[bytes], provider: str = PROVIDERS["cpu"]
) -> Raw:
    """Open both forms and decode the pictures as the service does.

    Raises ValueError for a precision that the bundle lacks, and where `provider` does not run it.
    """
    import onnxruntime as ort

    from serve.anytime import StepModel
    from serve.bundle import InputRecord
    from serve.exits import Exit
    from serve.images import decode

    about = described(folder, precision)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def session(form: str) -> ort.InferenceSession:
        file = folder / about["models"][precision][form]
        # TF32 would flip spikes; the service does without it too.
        settings = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"} if provider == PROVIDERS["cuda"] else {}
        opened = ort.InferenceSession(file, options, providers=[(provider, settings)])
        if opened.get_providers()[0] != provider:
            raise ValueError(f"onnxruntime runs {file.name} on {opened.get_providers()[0]}, not {provider}")
        return opened

    if provider == PROVIDERS["cuda"]:
        ort.preload_dlls()

    unrolled, steps = session("unrolled"), StepModel(session("step"))
    chosen = about["exits"][precision]
    exit = Exit(chosen["rule"], chosen["threshold"], chosen.get("relax", 0.0))
    wanted = InputRecord.model_validate(about["input"])
    return Raw(
        all_steps=lambda image: len(unrolled.run(None, {"image": image})[0]),
        anytime=lambda image: len(steps.run(image, exit)[0].logits),
        images=tuple(decode(picture, wanted)[None] for picture in pictures),
    )


def described(folder: Path, precision: str | None = None) -> dict[str, Any]:
    """bundle.json; ValueError for a folder that has none, or a precision that the bundle lacks."""
    file = folder / "bundle.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no bundle here (no bundle.json); python -m export.bundle CKPT makes one")
    about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if precision is not None and precision not in about["models"]:
        raise ValueError(f"{folder} has {', '.join(about['models'])}, not {precision!r}")
    return about
