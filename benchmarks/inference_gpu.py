"""`python benchmarks/inference_gpu.py RUN/student.pt`: latency and throughput of a student on a GPU, fp16 against fp32.

Variants take turns for several rounds, ratios are taken within a round, and every call has other real test images. A
call starts with images in memory and ends with logits in memory. Writes OUT/inference_gpu-DATASET-NET-TT.json and
prints the table that is drawn from it. The variants, each in fp32 and fp16 (weights and spikes; membranes in fp32):
  onnx      python -m export.to_onnx in onnxruntime, with IO binding; it gives spike rates and taps as well
  graphs    the same with one CUDA graph for each batch size
  torch     the student's Graph in torch: normalisations folded, T in the batch, the first convolution once
  compiled  the same through torch.compile, which replays CUDA graphs
TF32 is off everywhere. Without a GPU it stops with an error; `--device cpu` shows that it runs, and is no measurement.
"""

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from inference import measure, spread, summarise
from train_speed import cpu_name

from train import cli


if TYPE_CHECKING:
    from inference_variants import Variant

    from export.graph import Graph
    from train.checkpoint import Checkpoint


KINDS = {
    "onnx": "onnxruntime, IO binding",
    "graphs": "onnxruntime, CUDA graphs",
    "torch": "torch, T in the batch",
    "compiled": "torch.compile",
}
PRECISIONS = ("fp32", "fp16")
VARIANTS = tuple(f"{kind}_{precision}" for kind in KINDS for precision in PRECISIONS)
Device = Literal["cuda", "cpu"]
BASES = ("onnx_fp32", "compiled_fp32")
"""What the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    checkpoint: Annotated[Path, Positional]
    """student.pt."""
    device: Device = "cuda"
    """Where to run."""
    batch_sizes: tuple[int, ...] = (1, 8, 64, 256)
    """Images of one call."""
    rounds: int = 5
    """Times that each variant is timed."""
    seconds: float = 0.5
    """Shortest time of a variant and round."""
    images: int = 1024
    """Test images for accuracies and times; a remainder that does not fill the largest batch is left out."""
    variants: tuple[str, ...] = VARIANTS
    """Which variants; ratios are to onnx_fp32 and compiled_fp32."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path = Path("results")
    """Folder of the JSON file."""

    def __post_init__(self) -> None:
        if min(self.rounds, *self.batch_sizes) < 1 or self.seconds < 0:
            raise ValueError("rounds and batch_sizes must be at least 1, seconds not negative")
        if self.images < max(self.batch_sizes):
            raise ValueError(f"images ({self.images}) must fill the largest batch, {max(self.batch_sizes)}")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise cli.unknown("variant", unknown[0], VARIANTS)


def main(config: Config) -> dict[str, Any]:
    """Make the variants, measure them, write the JSON and return it. Raises ValueError where there is no GPU."""
    import torch
    from inference_variants import answers

    from export.images import real_images
    from export.lower import lower
    from serve.session import cuda_devices
    from train.checkpoint import Checkpoint
    from train.record import git_state, versions, write_json

    if config.device == "cuda" and not cuda_devices():
        raise ValueError("--device cuda: the driver sees no CUDA device; run this on a machine that has one")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    student = Checkpoint.load_student(config.checkpoint)
    graph, largest = lower(student), max(config.batch_sizes)
    test = real_images(student, split="test", limit=config.images, root=config.data_root)
    number = len(test) // largest * largest
    if not number:
        raise ValueError(f"{test.dataset} has {len(test)} test images, fewer than a batch of {largest}")
    rows: dict[str, dict[str, Any]] = {}
    made: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in config.variants:
            began = time.perf_counter()
            try:
                variant = make(name, student, graph, device=config.device, folder=Path(folder))
                found = answers(variant, test.images[:number], batch_size=largest).logits
                for size in config.batch_sizes:  # compiles, and records graphs
                    variant.answer(test.images[:size])
            except Exception as error:  # of onnxruntime, a compiler or a driver: one row less
                rows[name] = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
                print(f"{name:15s}{rows[name]['error']}", flush=True)
                continue
            made[name] = variant
            rows[name] = {"accuracy": float((found.argmax(-1) == test.labels[:number]).mean())}
            took = time.perf_counter() - began
            print(f"{name:15s}{rows[name]['accuracy']:.2%}  ({took:.0f} s)", flush=True)
        if not made:
            raise ValueError("none of the variants runs here; the lines above say why")
        timed = test.images[:number]
        sizes = config.batch_sizes
        rounds = measure(made, timed, batch_sizes=sizes, rounds=config.rounds, seconds=config.seconds)
    name = torch.cuda.get_device_name() if config.device == "cuda" and torch.cuda.is_available() else config.device
    content = {
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in ("checkpoint", "data_root", "out")},
        "student": {"net": cli.to_dict(student.net), "sha256": student.sha256},
        "images": {"dataset": test.dataset, "number": number},
        "machine": {"device": name, "cpu": cpu_name(), "system": platform.platform()},
        "versions": versions(),
        "git": git_state(),
        "rows": {k: r if "error" in r else r | summarise(rounds, k, bases=BASES) for k, r in rows.items()},
        "rounds": rounds,
    }
    path = config.out / f"inference_gpu-{test.dataset}-{student.net.name}-T{student.net.T}.json"
    write_json(path, content)
    print(f"\n{table(content)}\nwritten: {path}")
    return content


def make(
    name: str, student: "Checkpoint", graph: "Graph", *, device: Literal["cuda", "cpu"], folder: Path
) -> "Variant":
    """The variant of this name. Raises ValueError for one that the device cannot have."""
    kind, _, precision = name.partition("_")
    if kind in ("onnx", "graphs"):
        return by_onnx(student, graph, precision, device=device, graphs=kind == "graphs", folder=folder)
    return by_torch(graph, precision, device=device, compiled=kind == "compiled")


def by_onnx(
    student: "Checkpoint", graph: "Graph", precision: Any, *, device: Device, graphs: bool, folder: Path
) -> "Variant":
    """The exported model in buffers that never move."""
    from inference_variants import Variant, every_step

    from export.onnx_graph import build_model
    from serve.session import FixedBatches, open_session

    if graphs and device == "cpu":
        raise ValueError("CUDA graphs need --device cuda")
    path = folder / f"{precision}.onnx"
    model = build_model(graph, labels=student.labels, checkpoint_sha256=student.sha256, precision=precision)
    path.write_bytes(model.SerializeToString())
    session = open_session(path, provider=device, cuda_graphs=graphs)
    place = [output.name for output in session.get_outputs()].index("logits")
    fixed = FixedBatches(session)
    return Variant(answer=lambda images: every_step(fixed.run(images)[place]))


def by_torch(graph: "Graph", precision: str, *, device: str, compiled: bool) -> "Variant":
    """The Graph in torch."""
    import torch
    from inference_models import Folded
    from inference_variants import Answer, Variant, every_step

    network: Callable[[torch.Tensor], torch.Tensor] = Folded(graph, half=precision == "fp16").to(device)
    if compiled:
        # A program for each batch size, as for the other variants.
        torch._dynamo.config.recompile_limit = 64
        network = torch.compile(network, dynamic=False, mode="reduce-overhead")

    def answer(images: np.ndarray) -> Answer:
        with torch.no_grad():
            return every_step(network(torch.from_numpy(images).to(device)).cpu().numpy())

    return Variant(answer=answer)


def table(content: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    net, sizes = content["student"]["net"], list(content["rounds"][0])
    head = ["variant", "precision", "accuracy"]
    for size in sizes:
        head += [f"batch {size}: ms a call", "images/s", "time / onnxruntime fp32", "time / torch.compile fp32"]
    lines = [
        f"{net['name']} of {content['images']['dataset']}, T={net['T']}, {content['machine']['device']}, "
        f"{len(content['rounds'])} rounds; accuracy on {content['images']['number']:,} test images",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for name, row in content["rows"].items():
        kind, _, precision = name.partition("_")
        if "error" in row:
            lines.append(f"| {KINDS[kind]} | {precision} | {row['error']} |" + " |" * (len(head) - 3))
            continue
        cells = [KINDS[kind], precision, f"{100 * row['accuracy']:.2f} %"]
        for size in sizes:
            found = row["batches"][size]
            cells += [f"{1e3 * int(size) * found['wall_seconds']:.3f}", f"{1 / found['wall_seconds']:,.0f}"]
            for base in BASES:
                cells.append(spread(found.get(f"wall_seconds_over_{base}")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/inference_gpu.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
