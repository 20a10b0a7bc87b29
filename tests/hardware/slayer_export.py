"""Build a network with lava-dl's slayer, run it and export it. Runs inside the Lava venv; test_slayer.py calls it.

Usage: slayer_export.py PACKAGES IN.npz OUT.net OUT.npz, with PACKAGES where torch is, which Lava's venv has not, and
IN.npz: weights `conv` and `dense`, even integers, and `events` [T, B, C, H, W]. OUT.npz: slayer's spikes [T, B, ...] of
`input`, `conv` and `dense`.
"""

import dataclasses
import functools
import importlib
import sys
import types


packages, given, net_path, spikes_path = sys.argv[1:]
sys.path.append(packages)  # at the end: numpy is this venv's
original = dataclasses.dataclass
dataclasses.dataclass = functools.partial(original, unsafe_hash=True)  # else Python 3.11 refuses Lava's defaults
importlib.import_module("lava.magma.compiler.var_model")
dataclasses.dataclass = original


class Anything(types.ModuleType):
    """A package that slayer imports for its data sets and plots."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("torchvision", "torchvision.transforms", "torchvision.datasets", "cv2", "PIL", "PIL.Image"):
    sys.modules[name] = Anything(name)
for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.animation", "matplotlib.patches"):
    sys.modules[name] = Anything(name)

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lava.lib.dl import slayer  # noqa: E402


arrays = np.load(given, allow_pickle=False)
neuron = {"threshold": 1.25, "current_decay": 0.25, "voltage_decay": 0.1}
outputs, inputs = arrays["dense"].shape
c_out, c_in, *kernel = arrays["conv"].shape
blocks = {
    "input": slayer.block.cuba.Input(neuron, weight=1.0, bias=0.0),
    "conv": slayer.block.cuba.Conv(neuron, c_in, c_out, tuple(kernel), stride=(2, 1), padding=(1, 0)),
    "flatten": slayer.block.cuba.Flatten(),
    "dense": slayer.block.cuba.Dense(neuron, inputs, outputs),
}
for name in ("conv", "dense"):
    weight = blocks[name].synapse.weight
    weight.data = torch.tensor(arrays[name].tolist()).reshape(weight.shape) / 64  # slayer's unit

events = arrays["events"]
x = torch.tensor(events.tolist(), dtype=torch.float32).movedim(0, -1)
x = torch.nn.functional.pad(x, (0, len(blocks)))
spikes, late = {}, 0
for name, block in blocks.items():
    x = block(x)
    late += hasattr(block, "neuron")  # a block with neurons hands its spikes on one step late
    spikes[name] = x[..., late : late + len(events)].movedim(-1, 0).detach().numpy().astype(np.uint8)
np.savez(spikes_path, **spikes)
with h5py.File(net_path, "w") as file:
    for index, block in enumerate(blocks.values()):
        block.export_hdf5(file.create_group(f"layer/{index}"))
