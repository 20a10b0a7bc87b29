"""The .net file: Intel's netx format (HDF5), read, checked and written.

`lava.lib.dl.netx.hdf5.Network` reads what `write` writes. netx skips what it does not know and truncates what does not
fit; `read` and `check` refuse both. What the file adds to netx's format is ignored by netx: the dataset `tserve` (JSON,
Net.meta) beside `layer`, and the attribute `name` of every layer.
"""

import io
import json
import os
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hardware.net import (
    INTEGRATOR,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    InputLayer,
    Layer,
    Limits,
    Net,
    NetxError,
    Neuron,
    SpikingLayer,
    accumulator_bound,
    check,
)


__all__ = [
    "INTEGRATOR",
    "ConvLayer",
    "DenseLayer",
    "FlattenLayer",
    "InputLayer",
    "Limits",
    "Net",
    "NetxError",
    "Neuron",
    "accumulator_bound",
    "check",
    "read",
    "write",
]

NO_LAYER = {
    "pool": "write max pooling as a convolution with groups=C, fold average pooling into the next layer",
    "average": "fold it into the next layer's weights",
    "dense_rec": "recurrent layers are not supported",
    "dense_comp": "complex weights are not supported",
}
"""netx layer types that are refused, and what to do instead."""


def write(net: Net, path: str | Path) -> None:
    """Write a Net that fits the chip, or raise NetxError. The file appears complete or not at all."""
    check(net)
    try:
        meta = json.dumps(dict(net.meta), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise NetxError(f"meta is not JSON: {error}") from error
    content = io.BytesIO()  # on a full disk the HDF5 library itself breaks off with a segmentation fault
    with h5py.File(content, "w") as file:
        file["tserve"] = meta
        for index, layer in enumerate(net.layers):
            _write_layer(file.create_group(f"layer/{index}"), layer)
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_layer(group: h5py.Group, layer: Layer) -> None:
    kinds = {InputLayer: "input", ConvLayer: "conv", FlattenLayer: "flatten", DenseLayer: "dense"}
    group.attrs["name"] = layer.name
    group.create_dataset("type", (1,), "S10", [kinds[type(layer)].encode("ascii")])
    group["shape"] = np.array(layer.shape, np.int64)
    if not isinstance(layer, FlattenLayer) and layer.neuron is not None and layer.neuron != INTEGRATOR:
        neuron = group.create_group("neuron")
        neuron["type"] = np.bytes_("CUBA")
        for key in ("iDecay", "vDecay", "vThMant"):
            neuron[key] = getattr(layer.neuron, key)
        neuron["refDelay"], neuron["gradedSpike"] = 1, False
        if isinstance(layer, InputLayer):
            group["weight"], group["bias"] = layer.weight, layer.bias
    if not isinstance(layer, SpikingLayer):
        return
    group.create_dataset("weight", data=_narrow(layer.weight), compression="gzip", shuffle=True)
    group["bias"] = _narrow(layer.bias.T)  # one per neuron: netx takes (W, H, C)
    if isinstance(layer, ConvLayer):
        group["inChannels"], group["outChannels"] = layer.weight.shape[1] * layer.groups, layer.weight.shape[0]
        group["kernelSize"] = np.array(layer.weight.shape[2:], np.int64)
        for key in ("stride", "padding", "dilation"):
            group[key] = np.array(getattr(layer, key), np.int64)
        group["groups"] = layer.groups
    else:
        group["inFeatures"], group["outFeatures"] = layer.weight.shape[1], layer.weight.shape[0]


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest signed type that holds them; netx widens whatever it reads."""
    low, high = int(values.min()), int(values.max())
    return values.astype(np.min_scalar_type(min(low, -1 - high)))  # of a negative number: a signed type


def read(path: str | Path) -> Net:
    """Read a netx file, ours or lava-dl slayer's. Raises NetxError that names what it holds that is not supported.

    A file that begins with a dense layer gets the InputLayer that netx infers. `check` says whether the net fits.
    """
    path = Path(path)
    if not path.is_file():
        raise NetxError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            return Net(layers=_read_layers(file), meta=_read_meta(file))
    except NetxError as error:
        raise NetxError(f"{path}: {error}") from None
    except (OSError, RuntimeError) as error:  # h5py's, for files that are not HDF5, truncated or damaged
        advice = "cut short or damaged; copy or export it again" if h5py.is_hdf5(path) else "netx files are HDF5 files"
        raise NetxError(f"{path}: not a whole HDF5 file ({advice})") from error


def _read_meta(file: h5py.File) -> dict[str, Any]:
    if "tserve" not in file:
        return {}
    try:
        meta = json.loads(_text(file, "tserve", "the file"))
    except ValueError as error:  # a NetxError, too, is one
        raise NetxError(f"its dataset 'tserve' is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise NetxError("its dataset 'tserve' is not a JSON object")
    return meta


def _read_layers(file: h5py.File) -> tuple[Layer, ...]:
    groups = file.get("layer")
    if not isinstance(groups, h5py.Group) or not len(groups):
        raise NetxError("no group 'layer'; this is an HDF5 file, but not netx's")
    if missing := {str(index) for index in range(len(groups))} - set(groups):
        raise NetxError(f"group 'layer' has {len(groups)} entries but no {min(missing, key=int)!r}")
    layers: list[Layer] = []
    for index in range(len(groups)):
        group = groups[str(index)]
        if not isinstance(group, h5py.Group):
            raise NetxError(f"layer {index}: not a group")
        kind = _text(group, "type", f"layer {index}")
        name = group.attrs.get("name")
        name = name if isinstance(name, str) else kind if kind in ("input", "flatten") else f"{kind}{index}"
        layers.append(_read_layer(group, kind, name, f"layer {index} ({name})"))
    first = layers[0]
    if isinstance(first, DenseLayer):
        layers.insert(0, InputLayer(shape=(first.weight.shape[1],)))
    if not isinstance(layers[0], InputLayer):
        raise NetxError("layer 0: the file does not begin with an input layer, so its input shape is unknown")
    return tuple(layers)


def _read_layer(group: h5py.Group, kind: str, name: str, where: str) -> Layer:
    if kind not in ("input", "conv", "flatten", "dense"):
        advice = NO_LAYER.get(kind, "stock netx does not run it or skips it without a word")
        raise NetxError(f"{where}: unsupported layer type {kind!r} ({advice}); supported: input, conv, flatten, dense")
    shape = tuple(int(size) for size in _integers(group, "shape", where).reshape(-1))
    if kind == "input":
        if "neuron" not in group:
            return InputLayer(shape=shape, name=name)
        transform = {key: _scalar(group, key, where) for key in ("weight", "bias") if key in group}
        return InputLayer(shape=shape, name=name, neuron=_read_neuron(group, where), **transform)
    if kind == "flatten":
        return FlattenLayer(shape=(prod(shape),), name=name)  # slayer writes (N, 1, 1)
    if "delay" in group and np.any(_integers(group, "delay", where)):
        raise NetxError(f"{where}: has synaptic delays, which are not supported (netx ignores those of convolutions)")
    weight = _integers(group, "weight", where)
    neuron = INTEGRATOR if kind == "dense" and "neuron" not in group else _read_neuron(group, where)
    bias = _integers(group, "bias", where) if "bias" in group else np.zeros(weight.shape[0], np.int64)
    if kind == "dense":
        shape = (prod(shape),)
        weight = weight.reshape(shape[0], -1) if weight.size % shape[0] == 0 else weight
        return DenseLayer(name=name, shape=shape, weight=weight, bias=bias.reshape(-1), neuron=neuron)
    if weight.ndim == 5 and weight.shape[4] == 1:  # slayer's kernels have a time axis
        weight = weight[..., 0]
    if weight.ndim != 4 or len(shape) != 3:
        raise NetxError(f"{where}: weight is {weight.shape} and shape {shape}; a conv has four and three axes")
    return ConvLayer(
        name=name,
        shape=shape,
        weight=weight,
        bias=bias.T,  # one per neuron: netx takes (W, H, C)
        stride=_pair(group, "stride", where),
        padding=_pair(group, "padding", where),
        dilation=_pair(group, "dilation", where),
        groups=_scalar(group, "groups", where),
        neuron=neuron,
    )


def _read_neuron(layer: h5py.Group, where: str) -> Neuron:
    group = layer.get("neuron")
    if not isinstance(group, h5py.Group):
        raise NetxError(f"{where}: no 'neuron' group; netx stops there too")
    where = f"{where}: neuron"
    if (kind := _text(group, "type", where)) not in ("CUBA", "LOIHI"):
        raise NetxError(f"{where} type {kind!r} is not supported; supported: CUBA, LOIHI")
    if "messageBits" in group:
        raise NetxError(f"{where} has messageBits, with which netx fails; remove it, spikes are binary")
    if "gradedSpike" in group and np.any(group["gradedSpike"][()]):
        raise NetxError(f"{where} has graded spikes, which netx ignores; only binary spikes are supported")
    if "refDelay" in group and _scalar(group, "refDelay", where) > 1:
        raise NetxError(f"{where} has a refractory delay, which netx ignores; refDelay must be 1")
    thresholds, v_decay, i_decay = (_scalar(group, key, where) for key in ("vThMant", "vDecay", "iDecay"))
    return Neuron(vThMant=thresholds, vDecay=v_decay, iDecay=i_decay)


def _dataset(group: h5py.Group, key: str, where: str) -> np.ndarray:
    if not isinstance(group.get(key), h5py.Dataset):
        raise NetxError(f"{where}: no dataset {key!r}" + (" (a complex one?)" if key in group else ""))
    return np.asarray(group[key][()])


def _text(group: h5py.Group, key: str, where: str) -> str:
    value = _dataset(group, key, where).reshape(-1)
    if value.size != 1 or not isinstance(value[0], bytes):
        raise NetxError(f"{where}: {key} is {value.tolist()}, must be one string")
    return value[0].decode("utf-8", "replace")


def _integers(group: h5py.Group, key: str, where: str) -> np.ndarray:
    value = _dataset(group, key, where)
    if value.size == 0 or not np.issubdtype(value.dtype, np.number):
        raise NetxError(f"{where}: {key} is not an array of numbers")
    if value.dtype in (np.int8, np.int16, np.int32):
        return value.astype(np.int64)
    if not np.isfinite(value).all() or np.any(value != np.rint(value)) or np.abs(value.astype(float)).max() >= 2**31:
        raise NetxError(f"{where}: {key} has values that are not 32-bit integers; netx would truncate them")
    return value.astype(np.int64)


def _scalar(group: h5py.Group, key: str, where: str) -> int:
    value = _integers(group, key, where)
    if value.size != 1:
        raise NetxError(f"{where}: {key} has shape {value.shape}; only one value per layer is supported")
    return int(value.reshape(()))


def _pair(group: h5py.Group, key: str, where: str) -> tuple[int, int]:
    value = _integers(group, key, where).reshape(-1)
    if value.size > 2:
        raise NetxError(f"{where}: {key} has {value.size} values, must be one or two")
    return int(value[0]), int(value[-1])
