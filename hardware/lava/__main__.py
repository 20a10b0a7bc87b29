"""Run any .net file in Lava's fixed-point simulation of Loihi: python -m hardware.lava FILE.net --images X.npy"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from hardware import lava, netx
from hardware.net import INTEGRATOR, Net
from hardware.netx_sim import Run, sample_count


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a .net file in Lava's fixed-point simulation of Loihi and print what each layer did.

    Exit status: 0 done, 1 Lava failed, 2 bad usage or input.
    """

    file: tyro.conf.Positional[Path]
    """The netx file (.net)."""
    images: Path
    """.npy of integers: images [B, C, H, W], or events [T, B, C, H, W]."""
    labels: Path | None = None
    """.npy of integers [B], the right classes; prints the accuracy."""
    T: int | None = None
    """Time steps per image; by default what the file says."""
    record: Literal["all", "output"] = "all"
    """Whose spikes to keep: every layer's, or the last one's, which is enough for the classes of a large data set."""
    out: Path | None = None
    """.npz to write: `spikes/NAME` uint8 [T, B, ...] for every recorded layer, `v_out` int64, the last membrane."""
    stock_conv: bool = False
    """Use Lava's own convolution: the same bits; minutes for wide layers."""
    timeout_s: float = 3600.0
    """Seconds after which the simulation is ended."""


def main(config: Config) -> Run:
    """Run, print, write. Raises ValueError for bad usage or input, lava.LavaFailed when Lava did not finish."""
    if config.out is not None and not config.out.parent.is_dir():
        raise ValueError(f"--out {config.out}: there is no directory {config.out.parent}")
    images = _load(config.images)
    net = netx.read(config.file)
    samples = sample_count(net, images)
    labels = None if config.labels is None else _labels(config.labels, samples)
    with tqdm(total=samples, unit=" samples", disable=None, delay=2, leave=False) as bar:
        run = lava.run(
            config.file,
            images,
            T=config.T,
            record=config.record,
            stock_conv=config.stock_conv,
            timeout_s=config.timeout_s,
            progress=lambda done: bar.update(done - bar.n),
        )
    print(report(net, run, labels))
    if config.out is not None:
        _write(config.out, {f"spikes/{name}": spikes for name, spikes in zip(run.names, run.spikes, strict=True)}, run)
        print(f"written: {config.out}")
    return run


def report(net: Net, run: Run, labels: np.ndarray | None = None) -> str:
    """Lines for the screen: each recorded layer's name, shape and firing rate; the classes, or how many are right."""
    T, samples = run.v_out.shape[:2]
    width = max(map(len, run.names))
    lines = [f"{samples} samples, {T} steps, {len(net.blocks)} layers"]
    if net.input.neuron is not None:
        lines.append(
            f"  the images are sent as they are; for data x the file asks for {net.input.weight} * x + {net.input.bias}"
        )
    for block, spikes in zip(net.blocks[-len(run.names) :], run.spikes, strict=True):
        shape = "x".join(map(str, block.shape))
        lines.append(f"  {block.name:{width}}  {shape:>11}  firing rate {spikes.mean():.4f}")
    found, source = classes(net, run)
    if labels is None:
        lines.append(f"argmax of the {source}: {' '.join(map(str, found))}")
    else:
        right = int((found == labels).sum())
        lines.append(f"accuracy by the {source}: {right / samples:.4f} ({right} of {samples})")
    return "\n".join(lines)


def classes(net: Net, run: Run) -> tuple[np.ndarray, str]:
    """The largest output of each sample, int [B], and of what: its logits where the last layer sums and never fires.

    Else of its number of spikes; the first of several that are equal.
    """
    last = net.spiking[-1].neuron
    sums = (last.vDecay == 0 or last == INTEGRATOR) and not run.spikes[-1].any()
    output = run.v_out[-1] if sums else run.spikes[-1].sum(axis=0, dtype=np.int64)
    return output.reshape(len(output), -1).argmax(axis=1), "logits" if sums else "number of spikes"


def _labels(path: Path, samples: int) -> np.ndarray:
    labels = _load(path)
    if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: holds {labels.dtype} {labels.shape}, must be integers ({samples},), one per sample")
    return labels


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        # numpy would advise to unpickle it, which runs what it holds.
        reason = "it is none, or holds Python objects" if "pickle" in str(error) else error
        raise ValueError(f"{path}: cannot be read as .npy of numbers: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: holds several arrays; give an .npy with one alone")
    return array


def _write(path: Path, spikes: dict[str, np.ndarray], run: Run) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, v_out=run.v_out, **spikes)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cli(argv: Sequence[str] | None = None) -> int:
    """The command: parse, run, turn errors into a message and an exit status."""
    config = tyro.cli(Config, args=argv, prog="python -m hardware.lava")
    try:
        main(config)
    except lava.LavaFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
