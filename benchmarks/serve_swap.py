"""Bundles replaced under load: variants of a bundle whose answers tell them apart, and the trial itself.

Variant n holds the same network with its classes moved on by n places, in the models and in bundle.json alike, and
names its labels `LABEL~n`. A whole variant thus answers with the same word as the original; models of one and labels
of another give a wrong word, and a wrong number tells which bundle.json it was.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import serve_raw
from serve_client import Apart, Plan, Sample, run
from serve_figures import Line, at_least, at_most, summary
from serve_process import Server, Setup, Watcher
from serve_requests import Request


WATCH_S = 0.2
PATIENCE_S = 15.0
MODES = ("symlink", "rename", "copy")
FIELDS = ("label", "model", "bundle")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A bundle, and what a server must answer with it."""

    folder: Path
    id: str
    """The first 12 hex digits of the SHA-256 of bundle.json."""
    name: str
    labels: tuple[str, ...]
    """Of each image."""


def swap(
    setup: Setup,
    files: Sequence[bytes],
    requests: tuple[Request, ...],
    *,
    folder: Path,
    times: int,
    callers: int,
    seed: int,
) -> tuple[dict[str, Any], list[Line]]:
    """Replace the served bundle `times` times under load, then put broken ones in its place."""
    precision, chance = setup.settings["TSERVE_PRECISION"], Random(seed)
    variants = [make(setup.bundle, folder / f"v{n}", n, precision=precision, files=files) for n in range(3)]
    live = folder / "live"
    place(variants[0].folder, live, "symlink")
    served = Setup(
        bundle=live,
        settings={**setup.settings, "TSERVE_WATCH": str(WATCH_S)},
        server_cores=setup.server_cores,
        client_cores=setup.client_cores,
    )
    with served.service() as server, Apart(setup.client_cores) as client, Watcher(server) as watcher:
        plan = Plan(port=server.port, requests=requests, callers=callers, seconds=3600, fields=FIELDS)
        load = client.start(plan)
        made, took = replace_often(server, requests[0], variants, live, times=times, chance=chance)
        broken = [breaking(server, requests, variants, live, folder / f"broken{i}", how) for i, how in enumerate(BREAK)]
        client.stop()
        report = load.result()
    names, picked = wrong(report.samples, variants), [value for value in took if value is not None]
    found = {
        "load": summary(report),
        "answers_by_bundle": {v.name: sum(s.answer.get("bundle") == v.id for s in report.samples) for v in variants},
        "not_of_one_bundle": names[:10],
        "replaced": made,
        "pick_up_s": took,
        "broken": broken,
        "rss": watcher.rss,
    }
    answering = {s.answer["bundle"] for s in report.samples if s.status == 200}
    return found, [
        at_least("bundles replaced, and seen in an answer where waited for", made - took.count(None), times),
        at_most("requests that were not answered 200", sum(s.status != 200 for s in report.samples), 0),
        at_most("answers that are not of one whole bundle", len(names), 0),
        at_least("bundles that answered, at least 3", len(answering), len(variants)),
        at_most("seconds to the slowest pick-up", max(picked, default=None), PATIENCE_S),
        *(
            Line(f"a bundle with {b['how']}: refused, logged by name, the old one serves", None, b["ok"])
            for b in broken
        ),
    ]


def replace_often(
    server: Server, request: Request, variants: Sequence[Variant], live: Path, *, times: int, chance: Random
) -> tuple[int, list[float | None]]:
    """(how often the bundle was replaced, seconds until an answer showed it); every fifth is not waited for.

    Ends early where three in a row do not show in PATIENCE_S.
    """
    took: list[float | None] = []
    for number, variant in zip(range(times), itertools.cycle([*variants[1:], variants[0]]), strict=False):
        place(variant.folder, live, MODES[number * len(MODES) // times])
        if number % 5 != 4 or number + 1 == times:
            took.append(seen(server, request, variant.id))
        time.sleep(chance.uniform(0, WATCH_S))
        if took[-3:] == [None, None, None]:
            print("three bundles in a row were not picked up: the trial ends here", flush=True)
            return number + 1, took
    return times, took


def wrong(samples: Sequence[Sample], variants: Sequence[Variant]) -> list[str]:
    """The answers that no one bundle of `variants` gives."""
    by_id = {variant.id: variant for variant in variants}
    found = []
    for sample in samples:
        if sample.status != 200:
            continue
        variant = by_id.get(sample.answer["bundle"])
        if variant is None:
            found.append(f"unknown bundle: {sample.answer}")
        elif sample.answer["model"] != variant.name or sample.answer["label"] != variant.labels[sample.request]:
            found.append(f"{sample.answer}, expected {variant.labels[sample.request]} of {variant.name}")
    return found


def make(source: Path, folder: Path, number: int, *, precision: str, files: Sequence[bytes]) -> Variant:
    """Write variant `number` of the bundle in `source`, with the models of one precision only."""
    about = serve_raw.described(source, precision)
    folder.mkdir()
    (folder / "samples").mkdir()
    for sample in about["samples"]:
        shutil.copyfile(source / sample["file"], folder / sample["file"])
    for file in about["models"][precision].values():
        rolled(source / file, folder / file, number)
    classes = len(about["labels"])
    moved = [about["labels"][(k - number) % classes] for k in range(classes)]
    about |= {
        "name": f"{about['name']}~{number}",
        "labels": [f"{label}~{number}" for label in moved],
        "samples": [sample | {"label": f"{sample['label']}~{number}"} for sample in about["samples"]],
        "precision": precision,
        **{key: {precision: about[key][precision]} for key in ("models", "exits")},
    }
    listed = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    about["files"] = {path.relative_to(folder).as_posix(): record(path) for path in listed}
    text = json.dumps(about).encode()
    (folder / "bundle.json").write_bytes(text)
    best = answers(folder, precision, files)
    return Variant(
        folder=folder,
        id=hashlib.sha256(text).hexdigest()[:12],
        name=about["name"],
        labels=tuple(about["labels"][k] for k in best),
    )


def record(path: Path) -> dict[str, Any]:
    """What bundle.json says of a file."""
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def rolled(source: Path, target: Path, number: int) -> None:
    """Write the model with its classes moved on: class k of the copy is class k - number of the source."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "logits":
                    names[i] = "logits/before"
    (logits,) = (output for output in model.graph.output if output.name == "logits")
    classes = logits.type.tensor_type.shape.dim[-1].dim_value
    order = np.array([(k - number) % classes for k in range(classes)])
    model.graph.initializer.append(numpy_helper.from_array(order, "classes"))
    model.graph.node.append(helper.make_node("Gather", ["logits/before", "classes"], ["logits"], axis=-1))
    onnx.save(model, target)


def answers(folder: Path, precision: str, files: Sequence[bytes]) -> list[int]:
    """The classes of the images by onnxruntime on the unrolled form, and the bundle's exit rule."""
    import onnxruntime as ort

    from serve.bundle import InputRecord
    from serve.exits import Exit, running_mean, steps_needed
    from serve.images import decode

    about = serve_raw.described(folder, precision)
    model = folder / about["models"][precision]["unrolled"]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.stack([decode(file, InputRecord.model_validate(about["input"])) for file in files])
    (logits,) = session.run(["logits"], {"image": images})
    chosen = about["exits"][precision]
    steps = steps_needed(logits, Exit(chosen["rule"], chosen["threshold"], chosen.get("relax", 0.0)))
    means = running_mean(logits)
    return [int(means[t - 1, b].argmax()) for b, t in enumerate(steps)]


def place(source: Path, live: Path, mode: str) -> None:
    """Put a copy of `source` where `live` is: by a new link, by two renames, or file by file into the folder itself."""
    aside = live.with_name("aside")
    if mode == "symlink":
        os.symlink(source.name, aside)
        if live.is_dir() and not live.is_symlink():
            shutil.rmtree(live)
        os.replace(aside, live)
    elif mode == "rename" or live.is_symlink() or not live.exists():
        shutil.copytree(source, aside)
        old = live.with_name("old")
        if os.path.lexists(live):
            os.rename(live, old)
        os.rename(aside, live)
        if old.is_symlink():
            old.unlink()
        else:
            shutil.rmtree(old, ignore_errors=True)
    else:
        for path in sorted(source.rglob("*"), reverse=True):  # bundle.json neither first nor last
            if path.is_file():
                shutil.copyfile(path, live / path.relative_to(source))


def seen(server: Server, request: Request, id: str) -> float | None:
    """Seconds until an answer comes from this bundle; None if none does in PATIENCE_S."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        if ask(server, request).answer.get("bundle") == id:
            return time.monotonic() - began
        time.sleep(0.03)
    return None


def ask(server: Server, request: Request) -> Sample:
    """Ask once."""
    return run(Plan(port=server.port, requests=(request,), number=1, fields=FIELDS)).samples[0]


BREAK = ("a byte changed", "half a bundle.json", "a file missing")


def breaking(
    server: Server, requests: tuple[Request, ...], variants: Sequence[Variant], live: Path, folder: Path, how: str
) -> dict[str, Any]:
    """Put a broken bundle in place, and the whole one again; how the server takes it."""
    old, new = variants[0], variants[1]
    place(old.folder, live, "rename")
    before = seen(server, requests[0], old.id)
    shutil.copytree(new.folder, folder)
    about = json.loads((folder / "bundle.json").read_text())
    (models,) = about["models"].values()
    file = folder / (models["step"] if how != "half a bundle.json" else "bundle.json")
    content = bytearray(file.read_bytes())
    if how == "a file missing":
        file.unlink()
    elif how == "a byte changed":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    length = server.log.stat().st_size
    place(folder, live, "rename")
    time.sleep(10 * WATCH_S)
    told = [line for line in server.log.read_text(errors="replace")[length:].splitlines() if file.name in line]
    during = [ask(server, request).answer.get("bundle") for request in requests]
    place(new.folder, live, "rename")
    after = seen(server, requests[0], new.id)
    ok = before is not None and set(during) == {old.id} and bool(told) and after is not None
    return {"how": how, "ok": ok, "log_lines": len(told), "log": told[:1], "repaired_s": after}
