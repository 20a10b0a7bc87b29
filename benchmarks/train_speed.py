"""`python benchmarks/train_speed.py [--net vgg_small]`: what a training step costs, beside an ANN's and SpikingJelly's.

Every variant runs in a process of its own, in turn, for several rounds; ratios are taken within a round. Writes
JSON and prints the table that is drawn from it. The variants:
  ann           the same network with ReLU, as train.teacher trains it
  spikingjelly  SpikingJelly's multi-step network as its examples write it: the image repeated T times through every
                layer, NCHW, torch's default SGD and allocator, CE of the mean over T
  eager         a student as train.distill trains it on this device (engine auto), CE of the mean over T
  compiled      the same with --engine compiled
  tser          as eager, with TSER's loss and the forward pass of a ResNet-34 teacher
  tser_compiled the same with --engine compiled, which compiles the teacher too
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal


sys.path.insert(0, str(Path(__file__).parents[1]))

from train import cli


VARIANTS = ("ann", "spikingjelly", "eager", "compiled", "tser", "tser_compiled")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What is timed."""

    net: str = "vgg_small"
    """Network (train.networks.NETWORKS)."""
    T: int = 4
    """Time steps of the students."""
    batch_size: int = 128
    """Images of one step."""
    size: int = 32
    """Side of an image, pixels."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of all variants."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    teacher: str = "resnet34"
    """Network of the teacher of variant tser."""
    rounds: int = 3
    """Times that each variant is run."""
    steps: int = 10
    """Timed steps of a run; their median counts."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for every shape (all variants)."""
    variants: tuple[str, ...] = VARIANTS
    """Which variants; ann and spikingjelly are what the others are compared with."""
    one: str | None = None
    """Run this variant alone and print its JSON (what each process does)."""
    out: Path | None = None
    """The JSON file; default results/train_speed-NET-TT-bB-PRECISION-DEVICE.json."""

    def __post_init__(self) -> None:
        if min(self.T, self.batch_size, self.size, self.rounds, self.steps) < 1:
            raise ValueError("T, batch_size, size, rounds and steps must be at least 1")


def main(config: SpeedConfig) -> dict[str, Any]:
    """Run every variant in turn, write the JSON and return it. Raises ValueError if none of them runs."""
    from train.record import git_state, versions, write_json

    rounds: list[dict[str, Any]] = []
    for number in range(config.rounds):
        rounds.append({})
        for variant in config.variants:
            rounds[-1][variant] = found = in_a_process(config, variant)
            text = found.get("error") or f"{1e3 * found['seconds']:.1f} ms, {found['peak_bytes'] / 1e9:.2f} GB"
            print(f"round {number + 1}/{config.rounds}  {variant:13s}{text}", flush=True)
    devices = [found["device"] for row in rounds for found in row.values() if "device" in found]
    if not devices:
        raise ValueError("no variant ran")
    device = devices[0]
    settings = {k: v for k, v in cli.to_dict(config).items() if k not in ("one", "out", "device")}
    content = {
        "settings": settings,
        "machine": {"device": device, "cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "git": git_state(),
        "summary": summarise(rounds, config.batch_size),
        "rounds": rounds,
    }
    kind = "cpu" if device == "cpu" else "cuda"
    name = f"train_speed-{config.net}-T{config.T}-b{config.batch_size}-{config.precision}-{kind}.json"
    path = config.out or Path("results") / name
    write_json(path, content)
    print(f"\n{table(content)}\nwritten: {path}")
    return content


def in_a_process(config: SpeedConfig, variant: str) -> dict[str, Any]:
    """One variant in a fresh process: its allocator, caches and peak memory are its own."""
    names = ("net", "T", "batch_size", "size", "precision", "device", "teacher", "steps")
    flags = [part for name in names for part in (f"--{name}", str(getattr(config, name)))]
    flags.append("--cudnn_benchmark" if config.cudnn_benchmark else "--no_cudnn_benchmark")
    command = [sys.executable, __file__, "--one", variant, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_one(config: SpeedConfig) -> dict[str, Any]:
    """Time the steps of config.one here."""
    import torch

    from train.metrics import pick_device

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    device = torch.device(pick_device(config.device))
    images = torch.randint(256, (config.batch_size, 3, config.size, config.size), dtype=torch.uint8, device=device)
    target = torch.randint(10, (config.batch_size,), device=device)
    resident = peak_bytes(device)
    build = spikingjelly_step if config.one == "spikingjelly" else our_step
    step = build(config, images, target)
    began = time.perf_counter()
    step()
    step()
    first = time.perf_counter() - began
    seconds = []
    for _ in range(config.steps):
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": median(seconds),
        "fastest": min(seconds),
        "images_per_second": config.batch_size / median(seconds),
        "first_two_steps_seconds": first,
        "peak_bytes": peak_bytes(device),
        "peak_bytes_before_building": resident,
        "threads": torch.get_num_threads(),
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
    }


def our_step(config: SpeedConfig, images: Any, target: Any) -> Callable[[], None]:
    """A step as train/loop.py takes it."""
    import torch

    from train import engine, optimizer
    from train.checkpoint import Preprocess
    from train.config import NetConfig, OptimConfig, RunConfig
    from train.methods import METHODS, Outputs
    from train.networks import build

    compiled, taught_by = config.one in ("compiled", "tser_compiled"), config.one in ("tser", "tser_compiled")
    run = RunConfig(
        net=NetConfig(name=config.net, T=config.T, spiking=config.one != "ann", in_channels=3, size=config.size),
        optim=OptimConfig(batch_size=config.batch_size, lr=0.01),
        precision=config.precision,
        device=config.device,
        engine="compiled" if compiled else "auto",
    )
    fabric = engine.start(run)
    network = build(run.net)
    updates = optimizer.build(network, run.optim)
    model, updates = fabric.setup(engine.prepare(network, run, device=fabric.device.type), updates)
    model.train()
    preprocess = Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, size=config.size)
    method, teacher = METHODS["tser" if taught_by else "ce"], None
    if taught_by:
        net = NetConfig(name=config.teacher, spiking=False, in_channels=3, size=config.size)
        teacher = build(net).eval().requires_grad_(False).to(fabric.device)
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = torch.compile(teacher) if compiled else teacher

    def step() -> None:
        with fabric.autocast():
            taught = None
            if teacher is not None:
                with torch.no_grad():
                    taught = Outputs(logits=teacher(preprocess(images)))
            logits = model(preprocess(images))
            terms = method.loss(Outputs(logits=logits if logits.dim() == 3 else logits[None]), taught, target)
        updates.zero_grad(set_to_none=True)
        fabric.backward(terms["total"])
        updates.step()

    return step


def spikingjelly_step(config: SpeedConfig, images: Any, target: Any) -> Callable[[], None]:
    """A step as SpikingJelly's classification examples take it, of the same layers (all of them its own)."""
    import torch
    from spikingjelly.activation_based import functional, layer, neuron
    from torch.nn.functional import cross_entropy

    from train.checkpoint import Preprocess
    from train.config import NetConfig
    from train.networks import build
    from train.neurons import LIF, Norm

    network = build(NetConfig(name=config.net, T=config.T, in_channels=3, size=config.size)).to(images.device).train()
    layers = torch.nn.Sequential(network.stem, network.body)
    for module in layers.modules():  # ours differ from their parents in what SpikingJelly's users do not have
        if isinstance(module, LIF | Norm):
            module.__class__ = neuron.LIFNode if isinstance(module, LIF) else layer.BatchNorm2d
    updates = torch.optim.SGD(layers.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    preprocess = Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, size=config.size)
    scaler = torch.amp.GradScaler(images.device.type, enabled=config.precision == "fp16")
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)

    def step() -> None:
        with torch.autocast(images.device.type, dtype=low, enabled=low is not None):
            logits = layers(preprocess(images).unsqueeze(0).repeat(config.T, 1, 1, 1, 1)).mean(0)
            loss = cross_entropy(logits, target)
        updates.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(updates)
        scaler.update()
        functional.reset_net(layers)

    return step


def synchronise(device: Any) -> None:
    """Wait for a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: Any) -> int:
    """Most memory so far: of the process (resident) on a CPU, of torch's allocator on a GPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise(rounds: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """For each variant the medians over rounds, and its ratios to ann and spikingjelly with their spread."""
    summary: dict[str, Any] = {}
    for variant in rounds[0]:
        good = [r for r in rounds if "error" not in r[variant]]
        if not good:
            summary[variant] = {"error": rounds[0][variant]["error"]}
            continue
        seconds = median(r[variant]["seconds"] for r in good)
        row: dict[str, Any] = {
            "seconds": seconds,
            "images_per_second": batch_size / seconds,
            "peak_bytes": median(r[variant]["peak_bytes"] for r in good),
        }
        for base in ("ann", "spikingjelly"):
            for key in ("seconds", "peak_bytes"):
                pairs = [r[variant][key] / r[base][key] for r in good if key in r.get(base, {})]
                if pairs:
                    row[f"{key}_over_{base}"] = {"median": median(pairs), "min": min(pairs), "max": max(pairs)}
        summary[variant] = row
    return summary


def table(content: dict[str, Any]) -> str:
    """The summary as Markdown."""
    settings, machine = content["settings"], content["machine"]
    lines = [
        f"{settings['net']}, T={settings['T']}, batch {settings['batch_size']}, {settings['precision']}, "
        f"{machine['cpu'] if machine['device'] == 'cpu' else machine['device']}, {len(content['rounds'])} rounds",
        "",
        "| variant | ms a step | images/s | time / ann | spikingjelly's time / its | peak GB | peak / spikingjelly's |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, row in content["summary"].items():
        if "error" in row:
            lines.append(f"| {variant} | {row['error']} | | | | | |")
            continue
        ann, sj, memory = (
            row.get(key) for key in ("seconds_over_ann", "seconds_over_spikingjelly", "peak_bytes_over_spikingjelly")
        )
        cells = [
            f"{1e3 * row['seconds']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{ann['median']:.2f} ({ann['min']:.2f} to {ann['max']:.2f})" if ann else "",
            f"{1 / sj['median']:.2f} ({1 / sj['max']:.2f} to {1 / sj['min']:.2f})" if sj else "",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{memory['median']:.2f}" if memory else "",
        ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor as the system names it."""
    path = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def command(argv: list[str]) -> None:
    """Parse and run."""
    config = cli.parse(SpeedConfig, argv=argv, prog="python benchmarks/train_speed.py", description=__doc__ or "")
    from train.networks import NETWORKS

    for name in (config.net, config.teacher):
        if name not in NETWORKS:
            raise cli.unknown("network", name, NETWORKS)
    if unknown := [v for v in (*config.variants, config.one or "ann") if v not in VARIANTS]:
        raise cli.unknown("variant", unknown[0], VARIANTS)
    if config.one:
        print(json.dumps(run_one(config)))
    else:
        main(config)


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
