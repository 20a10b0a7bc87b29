"""Small random nets, and other files to run, for the tests of hardware."""

import sys
from math import prod
from pathlib import Path

import h5py
import numpy as np

from hardware.net import ConvLayer, DenseLayer, FlattenLayer, InputLayer, Layer, Net, Neuron


def conv(
    rng: np.random.Generator,
    name: str,
    before: tuple[int, ...],
    *,
    out: int,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    neuron: Neuron,
    bias_per_neuron: bool = False,
) -> ConvLayer:
    size = [len(range(0, before[i + 1] + 2 * padding[i] - dilation[i] * (kernel[i] - 1), stride[i])) for i in range(2)]
    shape = (out, size[0], size[1])
    return ConvLayer(
        name=name,
        shape=shape,
        weight=rng.integers(-90, 91, (out, before[0] // groups, *kernel)),
        bias=rng.integers(-60, 120, shape if bias_per_neuron else out),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        neuron=neuron,
    )


def dense(rng: np.random.Generator, name: str, inputs: int, outputs: int, *, neuron: Neuron) -> DenseLayer:
    return DenseLayer(
        name=name,
        shape=(outputs,),
        weight=rng.integers(-90, 91, (outputs, inputs)),
        bias=rng.integers(-60, 120, outputs),
        neuron=neuron,
    )


def readout() -> Neuron:
    return Neuron(vThMant=131071, vDecay=0)


def random_net(
    seed: int, *, T: int = 4, hold: bool = True, v_decay: int = 2048, i_decay: int = 4096, threshold: int = 250
) -> Net:
    """Conv (W != H, neuron-wise bias), conv (stride, groups, dilation, another kernel), flatten, dense, dense."""
    rng = np.random.default_rng(seed)
    shape: tuple[int, ...] = (3, 6, int(rng.integers(7, 10)))
    first = Neuron(vThMant=20 * threshold, vDecay=v_decay, iDecay=0 if hold else i_decay)
    hidden = Neuron(vThMant=threshold, vDecay=v_decay, iDecay=i_decay)
    groups = int(rng.choice([1, 2]))
    layers: list[Layer] = [InputLayer(shape=shape)]
    layers.append(conv(rng, "stem", shape, out=4, neuron=first, bias_per_neuron=seed % 2 == 0))
    layers.append(
        conv(
            rng,
            "block.conv",
            layers[-1].shape,
            out=6,
            kernel=(3, 2),
            stride=(int(rng.integers(1, 3)), int(rng.integers(1, 3))),
            padding=(1, 0),
            dilation=(int(rng.integers(1, 3)), 1),
            groups=groups,
            neuron=hidden,
        )
    )
    features = prod(layers[-1].shape)
    layers.append(FlattenLayer(shape=(features,)))
    layers.append(dense(rng, "hidden", features, 12, neuron=hidden))
    layers.append(dense(rng, "head", 12, 5, neuron=readout()))
    return Net(layers=tuple(layers), meta={"format": 1, "T": T, "labels": ["a", "b", "c", "d", "e"]})


def images(seed: int, net: Net, count: int = 3, *, lo: int = -100, hi: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(lo, hi, (count, *net.input.shape))


def write_as_slayer(path: Path, rng: np.random.Generator) -> None:
    """A file as slayer's export_hdf5 writes it: S10 (1,) types, float weights, str neuron type, no input layer."""
    with h5py.File(path, "w") as file:
        for index, (inputs, outputs) in enumerate(((6, 4), (4, 2))):
            group = file.create_group(f"layer/{index}")
            group.create_dataset("type", (1,), "S10", [b"dense"])
            group["shape"] = np.array([outputs, 1, 1])
            group["inFeatures"], group["outFeatures"] = inputs, outputs
            group["weight"] = rng.integers(-60, 60, (outputs, inputs)).astype(np.float32)
            values = {"iDecay": 1024, "vDecay": 128, "vThMant": 80, "refDelay": 1, "gradedSpike": False}
            for key, value in {"type": "CUBA", **values}.items():
                group.create_dataset(f"neuron/{key}", data=value)


def fake_python(folder: Path, script: str) -> Path:
    """A program that stands where the Lava venv's Python should, and runs `script` whatever it is given."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path
