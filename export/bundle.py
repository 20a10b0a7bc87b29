"""`python -m export.bundle CKPT`: everything about a student in one folder that the server can serve.

Evaluation, ONNX model, netx file, energy and their verification are made by the commands of the same names; the folder
appears only when all of them passed. A student that Loihi cannot express is bundled without a .net, with the reason.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from export.card import card, summary_table
from export.verify import judged
from train import cli


if TYPE_CHECKING:
    from export.bundle_models import Models


FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Export, verify and describe a student."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt to bundle."""
    out: Path | None = None
    """Folder to write; default: bundle/ beside the checkpoint. One that is there is replaced at the end."""
    name: str | None = None
    """The model's name at the server; default: made of data set, network, method and T."""
    samples: int = 256
    """Test images on which the ONNX models are verified and the energy counted."""
    netx_samples: int = 16
    """Test images on which the .net file is run."""
    verify: Literal["lava", "reference", "none"] = "lava"
    """What runs the .net file: Lava's simulator, our numpy model of it, or nothing."""
    precision: Literal["auto", "fp32", "int8"] = "auto"
    """What the server runs by default; auto: int8, the chip's integers, unless it costs more than `tolerance`."""
    tolerance: float = 0.005
    """Accuracy that stopping early, and int8, may lose on validation images."""
    gallery: int = 20
    """Test images that go into the bundle as samples of the demo."""
    teacher: Path | None = None
    """An ANN to compare the energy with; default: the student's teacher, where its file is still there."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        for field in ("samples", "netx_samples", "gallery"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance must be in [0, 1], got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The bundle's folder and what its JSON files say."""

    path: Path
    about: dict[str, Any]
    evaluation: dict[str, Any]
    energy: dict[str, Any]
    verification: dict[str, Any]


def main(config: BundleConfig) -> Result:
    """Write the bundle, whole or not at all. Raises NotVerified if a model or the .net file fails its check."""
    from export import energy
    from export.bundle_models import write_models
    from export.exits_view import plot
    from hardware import chip
    from train import evaluate
    from train.checkpoint import Checkpoint
    from train.record import atomic, write_json

    checkpoint = Checkpoint.load_student(config.checkpoint)
    if checkpoint.net.event:
        raise ValueError(
            f"{config.checkpoint}: this student was trained on frames of events [T, B, C, H, W], and a bundle is "
            "served on images; export it with python -m export.to_loihi"
        )
    out = config.out or config.checkpoint.parent / "bundle"
    if out.exists() and not (out / "bundle.json").is_file():
        raise ValueError(f"{out}: exists and is not a bundle; it is not replaced, give another --out")
    common: dict[str, Any] = {"checkpoint": config.checkpoint, "data_root": config.data_root}
    with atomic(out) as new:
        new.mkdir()
        print("writing and verifying the netx file", flush=True)  # first: it says at once if Lava is missing
        netx = write_netx(config, new / "student.net")
        print("evaluating on the test split", flush=True)
        evaluation = evaluate.main(evaluate.EvaluateConfig(**common, out=new, device="cpu"))
        print("writing and verifying the ONNX models, and measuring when they may stop", flush=True)
        counting = energy.EnergyConfig(**common, out=new, samples=config.samples, teacher=config.teacher, device="cpu")
        models = write_models(
            checkpoint,
            new,
            common=common,
            samples=config.samples,
            net=new / "student.net",
            chip=chip.load(counting.chip),
            tolerance=config.tolerance,
        )
        write_json(new / "exits.json", models.exits)
        plot(models.exits, new / "exits.png")
        precision = models.served(tolerance=config.tolerance) if config.precision == "auto" else config.precision
        if precision not in models.results:
            raise ValueError(f"--precision {precision}: {models.unsupported[precision]}")
        print("writing and verifying the NIR file", flush=True)
        nir = write_nir(common, new / "student.nir")
        print("counting operations", flush=True)
        counted = energy.main(counting, exits=models.exits, net=netx).report
        verification = {"onnx": models.verification, "netx": netx, "nir": nir}
        write_json(new / "verify.json", verification)
        about = {
            **describe(checkpoint, models, evaluation, counted, name=config.name),
            "precision": precision,
            "samples": write_gallery(checkpoint, new / "samples", config),
        }
        (new / "card.md").write_text(card(checkpoint, about, evaluation, counted, verification))
        about["files"] = {
            path.relative_to(new).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in sorted(new.rglob("*"))
            if path.is_file()
        }
        write_json(new / "bundle.json", about)
    return Result(path=out, about=about, evaluation=evaluation, energy=counted, verification=verification)


def write_netx(config: BundleConfig, path: Path) -> dict[str, Any]:
    """Write the .net file and return what its JSON says, or {"unsupported": reason} where Loihi cannot express it."""
    from export import to_loihi
    from export.prepare import NotForLoihi
    from hardware.mapping import MappingError

    try:
        return to_loihi.main(
            to_loihi.LoihiConfig(
                checkpoint=config.checkpoint,
                data_root=config.data_root,
                out=path,
                samples=config.netx_samples,
                verify=config.verify,
            )
        )
    except (NotForLoihi, MappingError) as reason:
        return {"unsupported": str(reason)}


def write_nir(common: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the NIR file and return what its JSON says, or {"unsupported": reason} where NIR cannot express it."""
    from export import to_nir
    from export.lower import UnsupportedLayer

    try:
        return to_nir.main(to_nir.NirConfig(**common, out=path)).report
    except UnsupportedLayer as reason:
        return {"unsupported": str(reason)}


def describe(
    checkpoint: Any, models: Models, evaluation: dict[str, Any], counted: dict[str, Any], *, name: str | None
) -> dict[str, Any]:
    """What the server needs to know of the student and its models, from the other files' contents."""
    from export.bundle_models import FILES
    from export.exits import short

    metadata = models.results["fp32"]["unrolled"].metadata
    net, recorded = checkpoint.net, checkpoint.provenance["config"]
    per_image, prices = counted["per_image"], counted["prices"]
    return {
        "format": FORMAT,
        "name": name or f"{recorded['data']['name']}-{net.name}-{recorded['method']['name']}-T{net.T}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "T": net.T,
        "labels": list(checkpoint.labels),
        "input": {"channels": net.in_channels, "height": net.size, "width": net.size},
        "models": {precision: FILES[precision] for precision in models.results},
        "exits": {precision: short(found) for precision, found in models.exits.items()},
        "lif_layers": metadata["lif_layers"],
        "lif_shapes": metadata["lif_shapes"],
        "synapses": metadata["synapses"],
        "energy": {
            "chip": counted["chip"],
            "convention": counted["convention"]["name"],
            "ac_J": prices["ac"]["value"],
            "mac_J": prices["mac"]["value"],
            "static_macs": per_image["static_macs"],
            "ann_macs": per_image["ann"]["macs"],
            "ann_energy_J": per_image["ann"]["energy_J"],
            "conventions": [convention(entry) for entry in counted["conventions"]],
        },
        "metrics": {
            "accuracy": evaluation["accuracy"],
            "accuracy_by_T": evaluation["accuracy_by_T"],
            "teacher_accuracy": checkpoint.metrics.get("teacher_accuracy"),
        },
        "dataset": evaluation["dataset"],
        "checkpoint_sha256": checkpoint.sha256,
    }


def convention(entry: dict[str, Any]) -> dict[str, Any]:
    """What the server needs of a convention in energy.json, to count as it does image by image."""
    return {
        **{key: entry[key] for key in ("name", "title", "says", "source")},
        "ac_J": entry["prices"]["ac"]["value"],
        "mac_J": entry["prices"]["mac"]["value"],
        "layers": entry.get("charges", []),
        "unavailable": entry.get("unavailable"),
    }


def write_gallery(checkpoint: Any, folder: Path, config: BundleConfig) -> list[dict[str, str]]:
    """Save real test images as PNG, the classes in turn, and return their entries for bundle.json."""
    import numpy as np
    from PIL import Image

    from export.images import real_images

    test = real_images(checkpoint, split="test", root=config.data_root)
    turns = np.empty(len(test.labels), np.int64)  # how many images of the same class came before
    for k in np.unique(test.labels):
        rows = np.flatnonzero(test.labels == k)
        turns[rows] = np.arange(len(rows))
    folder.mkdir()
    entries = []
    for i, row in enumerate(np.lexsort((test.labels, turns))[: config.gallery]):
        pixels = np.rint(test.images[row] * 255).astype(np.uint8)
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        image.save(folder / f"{i:03}.png")
        entries.append({"file": f"samples/{i:03}.png", "label": checkpoint.labels[test.labels[row]]})
    return entries


@judged
def command(argv: list[str]) -> int:
    """Parse, bundle, print the table; 1 where a verification failed."""
    config = cli.parse(BundleConfig, argv=argv, prog="python -m export.bundle", description=__doc__ or "")
    result = main(config)
    print(f"\n{summary_table(result.about, result.evaluation, result.energy, result.verification)}")
    size = sum(entry["bytes"] for entry in result.about["files"].values())
    print(f"\nwritten: {result.path}/ ({len(result.about['files']) + 1} files, {size / 1e6:.1f} MB)")
    for name in [*(n for n in result.about["files"] if not n.startswith("samples/")), "bundle.json"]:
        print(f"         {result.path / name}")
    is_default = result.path.resolve() == Path("runs/latest/bundle").resolve()
    print(f"next:    {'' if is_default else f'TSERVE_BUNDLE={result.path} '}bentoml serve")
    print(f"         python -m serve.demo {result.path}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
