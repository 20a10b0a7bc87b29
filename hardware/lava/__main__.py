"""Run any .net file in Lava's fixed-point simulation of Loihi: python -m hardware.lava FILE.net --images X.npy"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from hardware import lava, netx
from hardware.net import Net
from hardware.netx_sim import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a .net file in Lava's fixed-point simulation of Loihi and print what each layer did.

    Exit status: 0 done, 1 Lava failed, 2 bad usage or input.
    """

    file: tyro.conf.Positional[Path]
    """The netx file (.net)."""
    images: Path
    """.npy of integers: images [B, C, H, W], or events [T, B, C, H, W]."""
    T: int | None = None
    """Time steps per image; by default what the file says."""
    out: Path | None = None
    """.npz to write: `spikes/NAME` uint8 [T, B, ...] for every layer, `v_out` int64, the last layer's membrane."""
    stock_conv: bool = False
    """Use Lava's own convolution: the same bits; minutes for wide layers."""
    timeout_s: float = 600.0
    """Seconds after which the simulation is ended."""


def main(config: Config) -> Run:
    """Run, print, write. Raises ValueError for bad usage or input, lava.LavaFailed when Lava did not finish."""
    if config.out is not None and not config.out.parent.is_dir():
        raise ValueError(f"--out {config.out}: there is no directory {config.out.parent}")
    images = _load(config.images)
    net = netx.read(config.file)
    run = lava.run(config.file, images, T=config.T, stock_conv=config.stock_conv, timeout_s=config.timeout_s)
    print(report(net, run))
    if config.out is not None:
        _write(config.out, {f"spikes/{name}": spikes for name, spikes in zip(run.names, run.spikes, strict=True)}, run)
        print(f"written: {config.out}")
    return run


def report(net: Net, run: Run) -> str:
    """Lines for the screen: each layer's name, shape and firing rate; the classes, if the last layer is a readout."""
    T, samples = run.v_out.shape[:2]
    width = max(map(len, run.names))
    lines = [f"{samples} samples, {T} steps, {len(run.names)} layers"]
    for layer, spikes in zip(net.spiking, run.spikes, strict=True):
        shape = "x".join(map(str, layer.shape))
        lines.append(f"  {layer.name:{width}}  {shape:>11}  firing rate {spikes.mean():.4f}")
    if net.spiking[-1].neuron.vDecay == 0 and not run.spikes[-1].any():  # sums its input and never fires: logits
        classes = run.v_out[-1].reshape(samples, -1).argmax(axis=1)
        lines.append(f"argmax of the logits: {' '.join(map(str, classes))}")
    return "\n".join(lines)


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as .npy: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: holds several arrays; give an .npy with the images alone")
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
