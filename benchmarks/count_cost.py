"""`python benchmarks/count_cost.py [RUN/student.pt]`: what counting a student's operations costs, beside running it.

In every round each batch of real test images is run by the student's own network (as train.evaluate runs it, its images
normalised, no gradients) and then counted by export.counts (the Graph made ready, run in torch, every event of every
layer counted), so that the machine's load falls on both. Ratios are taken within a round. Before the rounds both give
their spikes of the first batch: they are the same network, folded and not, and may differ by a few that rounding flips.
Writes OUT/count_cost-DATASET-NET-TT-DEVICE.json and prints what it says.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from train_speed import cpu_name

from train import cli


if TYPE_CHECKING:
    import torch

    from export.graph import Graph
    from train.checkpoint import Preprocess

PATHS = ("checkpoint", "data_root", "out")
"""Settings that mean something on one machine only."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    checkpoint: Annotated[Path | None, Positional] = None
    """student.pt; without it an untrained student of --net, which fires less and costs the same."""
    net: str = "resnet18"
    """Network (train.networks.NETWORKS) where no checkpoint is given."""
    T: int = 4
    """Its time steps."""
    data: str = "cifar10"
    """Its images (train.data.DATASETS)."""
    images: int = 1000
    """The first N test images."""
    batch_size: int = 32
    """Images that are run at once, by both."""
    rounds: int = 3
    """Times that all images are run and counted."""
    threads: int = 1
    """Threads of torch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path = Path("results")
    """Folder of the JSON file."""

    def __post_init__(self) -> None:
        for name in ("T", "images", "batch_size", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """What is timed, on its device, and its images [N, C, H, W] in [0, 1]."""

    name: str
    T: int
    network: "torch.nn.Module"
    graph: "Graph"
    preprocess: "Preprocess"
    dataset: str
    images: np.ndarray


def main(config: Config) -> dict[str, Any]:
    """Time both in turn, write the JSON and return it."""
    import torch

    from train.engine import keep_freed_memory
    from train.metrics import pick_device
    from train.record import git_state, versions, write_json

    keep_freed_memory()
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    student = trained(config, config.checkpoint) if config.checkpoint else untrained(config)
    student.network.to(device).eval()
    spikes = spikes_of_both(student, student.images[: config.batch_size], device)
    rounds: list[dict[str, float]] = []
    for number in range(config.rounds):
        rounds.append(one_round(student, batch_size=config.batch_size, device=device))
        print(f"round {number + 1}/{config.rounds}  {said(rounds[-1], len(student.images))}", flush=True)
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    content = {
        "settings": {key: value for key, value in cli.to_dict(config).items() if key not in PATHS},
        "student": {"net": student.name, "T": student.T, "trained": config.checkpoint is not None},
        "images": {"dataset": student.dataset, "count": len(student.images)},
        "machine": {"device": device, "cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform(), **gpu},
        "versions": versions(),
        "git": git_state(),
        "spikes_of_first_batch": spikes,
        "summary": summarise(rounds, len(student.images)),
        "rounds": rounds,
    }
    path = config.out / f"count_cost-{student.dataset}-{student.name}-T{student.T}-{device}.json"
    write_json(path, content)
    print(f"\n{sentence(content)}\nwritten: {path}")
    return content


def trained(config: Config, checkpoint: Path) -> Student:
    """A student and the images of its data set."""
    from export.images import real_images
    from export.lower import lower
    from train.checkpoint import Checkpoint

    student = Checkpoint.load_student(checkpoint)
    test = real_images(student, split="test", limit=config.images, root=config.data_root)
    if test.images.ndim != 4:
        raise ValueError(f"{checkpoint}: a student of recordings of events; this times students of images")
    return Student(
        name=student.net.name,
        T=student.net.T,
        network=student.network(),
        graph=lower(student),
        preprocess=student.preprocess,
        dataset=test.dataset,
        images=test.images,
    )


def untrained(config: Config) -> Student:
    """A fresh student for the images of a data set."""
    from export.lower import lower_network
    from train.checkpoint import Preprocess
    from train.config import DataConfig, NetConfig
    from train.data import load
    from train.networks import build

    root: dict[str, Any] = {"root": config.data_root} if config.data_root else {}
    dataset = load(DataConfig(name=config.data, **root))
    if dataset.frames is not None:
        raise ValueError(f"{config.data}: recordings of events; this times students of images")
    shape: dict[str, Any] = {"in_channels": dataset.channels, "size": dataset.size, "num_classes": len(dataset.classes)}
    network = build(NetConfig(name=config.net, T=config.T, **shape)).eval()
    preprocess = Preprocess(mean=dataset.mean, std=dataset.std, size=dataset.size)
    return Student(
        name=config.net,
        T=config.T,
        network=network,
        graph=lower_network(network, preprocess),
        preprocess=preprocess,
        dataset=dataset.name,
        images=dataset.test.images[: config.images].numpy().astype(np.float32) / np.float32(255),
    )


def forward(student: Student, images: np.ndarray, device: str) -> None:
    """What counting is compared with: the logits of a batch, on the CPU."""
    import torch

    with torch.inference_mode():
        student.network(student.preprocess(torch.from_numpy(images).to(device))).cpu()


def spikes_of_both(student: Student, images: np.ndarray, device: str) -> dict[str, int]:
    """Spikes of all layers as the network fires them and as they are counted; also what warms both up."""
    from export.counts import count
    from train.networks import firing_rates

    with firing_rates(student.network) as rates:
        forward(student, images, device)
    neurons = {lif.name: int(np.prod(lif.shape)) for lif in student.graph.lif_layers}
    fired = sum(float(rate.double().sum()) * neurons[name] for name, rate in rates.items())
    counts = count(student.graph, images, batch_size=len(images), device=device)
    return {"network": round(fired), "counted": int(sum(layer.spikes.sum() for layer in counts.neurons))}


def one_round(student: Student, *, batch_size: int, device: str) -> dict[str, float]:
    """Seconds of all images, run and counted: on the clock, and of all cores together."""
    from export.counts import count_batches

    clocks: dict[str, Callable[[], float]] = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    running = dict.fromkeys(clocks, 0.0)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(student.images), batch_size):
            images = student.images[start : start + batch_size]
            began = {key: clock() for key, clock in clocks.items()}
            forward(student, images, device)
            for key, clock in clocks.items():
                running[key] += clock() - began[key]
            yield images

    began = {key: clock() for key, clock in clocks.items()}
    count_batches(student.graph, batches(), device=device)
    both = {key: clock() - began[key] for key, clock in clocks.items()}
    counting = {f"count_{key}": both[key] - running[key] for key in clocks}
    return {**{f"forward_{key}": spent for key, spent in running.items()}, **counting}


def summarise(rounds: list[dict[str, float]], images: int) -> dict[str, Any]:
    """Medians over the rounds; ratios within a round first."""
    ratios = [found["count_seconds"] / found["forward_seconds"] for found in rounds]
    return {
        "forward_seconds": median(found["forward_seconds"] for found in rounds),
        "count_seconds": median(found["count_seconds"] for found in rounds),
        "counted_images_per_second": images / median(found["count_seconds"] for found in rounds),
        "count_over_forward": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "count_over_forward_cpu_time": median(
            found["count_cpu_seconds"] / found["forward_cpu_seconds"] for found in rounds
        ),
    }


def said(found: dict[str, float], images: int) -> str:
    """A round in words."""
    forward, count = found["forward_seconds"], found["count_seconds"]
    each = f"{1e3 * forward / images:.2f} and {1e3 * count / images:.2f} ms an image"
    return f"forward {forward:.2f} s, counting {count:.2f} s ({each}): {count / forward:.3f} times"


def sentence(content: dict[str, Any]) -> str:
    """What the JSON says."""
    student, images, summary = content["student"], content["images"], content["summary"]
    ratio = summary["count_over_forward"]
    return (
        f"Counting {images['count']:,} {images['dataset']} images through {student['net']} T={student['T']} on"
        f" {content['machine']['device']} costs {ratio['median']:.2f} times the plain forward pass"
        f" ({ratio['min']:.2f} to {ratio['max']:.2f}), {summary['counted_images_per_second']:.1f} images/s."
    )


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/count_cost.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
