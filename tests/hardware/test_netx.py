"""The .net file: what goes in comes out, and what netx would misread is refused by name."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import netmaker
import numpy as np
import pytest

from hardware import netx
from hardware.net import ConvLayer, DenseLayer, FlattenLayer, InputLayer, Layer, Limits, Net, NetxError, Neuron


def assert_same(a: Net, b: Net) -> None:
    assert a.meta == b.meta
    assert len(a.layers) == len(b.layers)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if isinstance(left, np.ndarray):
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right, field.name


@pytest.mark.parametrize("seed", range(6))
def test_a_net_survives_the_file(seed: int, tmp_path: Path) -> None:
    net = netmaker.random_net(seed)
    netx.write(net, tmp_path / "a.net")
    assert_same(netx.read(tmp_path / "a.net"), net)
    assert [path.name for path in tmp_path.iterdir()] == ["a.net"]


def test_the_same_net_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.net", "b.net"):
        netx.write(netmaker.random_net(0), tmp_path / name)
    assert (tmp_path / "a.net").read_bytes() == (tmp_path / "b.net").read_bytes()


def test_a_refused_net_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    net = netmaker.random_net(0)
    netx.write(net, path)
    old = path.read_bytes()
    with pytest.raises(NetxError, match="meta is not JSON"):
        netx.write(dataclasses.replace(net, meta={"scale": float("nan")}), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_file_says_of_itself_may_be_long(tmp_path: Path) -> None:
    # An HDF5 attribute holds 64 KiB; the biases of a ResNet-34 take that much.
    net = dataclasses.replace(
        netmaker.random_net(0), meta={"labels": ["é" * 100] * 1000, "biases": list(range(20_000))}
    )
    netx.write(net, tmp_path / "a.net")
    assert netx.read(tmp_path / "a.net").meta == net.meta


def altered(index: int, **changes: Any) -> Net:
    """netmaker's net 0 (stem, block.conv, flatten, hidden, head after the input) with one layer changed."""
    net = netmaker.random_net(0)
    layers = list(net.layers)
    layers[index] = dataclasses.replace(layers[index], **changes)
    return dataclasses.replace(net, layers=tuple(layers))


def weights(index: int, *values: int, base: int = 0) -> Net:
    """Net 0 with the weights of one layer all `base` but the first ones."""
    layer = netmaker.random_net(0).layers[index]
    assert isinstance(layer, ConvLayer | DenseLayer)
    weight = np.full(layer.weight.shape, base)
    weight.reshape(-1)[: len(values)] = values
    return altered(index, weight=weight)


def neuron(**changes: int) -> Neuron:
    return dataclasses.replace(netmaker.readout(), **changes)


@pytest.mark.parametrize(
    "net",
    [
        weights(1, -128, 127),
        weights(4, -256, 254),
        weights(4, 255),
        weights(4, -255, base=-1),
        weights(1, -256, base=-1),
        weights(4, -128, 1),
        altered(5, neuron=netx.INTEGRATOR),
        altered(0, neuron=neuron(vThMant=0)),
        altered(1, bias=np.full(4, -4095)),
        altered(5, neuron=neuron(vThMant=131071, vDecay=4096, iDecay=0)),
    ],
)
def test_the_limits_themselves_fit(net: Net) -> None:
    netx.check(net)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (weights(1, -127, 128), r"layer 1 \(stem\): weights span -127..128, beyond 8 bits: -128..127 for mixed signs"),
        (weights(1, -129, 1), r"layer 1 \(stem\): weights span -129..1"),
        (weights(4, -256, 255), r"layer 4 \(hidden\): weights span -256..255"),
        (weights(4, 256), r"layer 4 \(hidden\): weights span 0..256"),
        (weights(4, -257, base=-1), r"layer 4 \(hidden\): weights span -257..-1"),
        (weights(4), r"layer 4 \(hidden\): all weights are zero"),
        (
            weights(4, base=-64),
            r"layer 4 \(hidden\): no weight is positive and the smallest is -64, minus a power of two",
        ),
        (weights(4, -1), r"layer 4 \(hidden\): no weight is positive and the smallest is -1, minus a power of two"),
        (altered(4, weight=np.ones((12, 7))), r"layer 4 \(hidden\): weight takes 7 inputs"),
        (altered(5, weight=np.ones((5, 12))), r"layer 5 \(head\): weight is float64 \(5, 12\), must be integers"),
        (altered(1, bias=np.full(4, -4096)), r"layer 1 \(stem\): a bias is 4096 in magnitude, at most 4095"),
        (altered(1, bias=np.zeros(4)), r"layer 1 \(stem\): bias has type float64"),
        (altered(1, bias=np.zeros(3, int)), r"layer 1 \(stem\): bias is \(3,\), must be \(4,\) or \(4, 6, \d\)"),
        (altered(5, neuron=neuron(vThMant=131072)), r"layer 5 \(head\): vThMant is 131072, must be 0..131071"),
        (altered(1, neuron=netx.INTEGRATOR), r"layer 1 \(stem\): vThMant is 131072, must be 0..131071"),
        (altered(0, neuron=neuron(iDecay=4097)), r"layer 0 \(input\): iDecay is 4097, must be 0..4096"),
        (altered(0, name="stem", neuron=neuron()), "several layers are called 'stem'"),
        (altered(5, neuron=neuron(vDecay=4097)), r"layer 5 \(head\): vDecay is 4097, must be 0..4096"),
        (altered(5, neuron=neuron(iDecay=-1)), r"layer 5 \(head\): iDecay is -1, must be 0..4096"),
        (altered(5, neuron=neuron(vThMant=1.5)), r"layer 5 \(head\): vThMant is 1.5, must be an int"),  # type: ignore[arg-type]
        (altered(1, shape=(4, 6, 6)), r"layer 1 \(stem\): shape is \(4, 6, 6\), but its input \(3, 6, \d\) gives"),
        (altered(1, groups=2), r"layer 1 \(stem\): weight \(4, 3, 3, 3\) with groups=2 does not fit 3 channels"),
        (altered(1, stride=(0, 1)), r"layer 1 \(stem\): stride and dilation must be at least 1"),
        (altered(1, dilation=(9, 1)), r"layer 1 \(stem\): kernel \(3, 3\) is larger than the padded input"),
        (altered(3, shape=(2,)), r"layer 3 \(flatten\): shape is \(2,\)"),
        (altered(0, shape=(3, 6)), r"layer 0 \(input\): shape is \(3, 6\), must be \(C, H, W\) or \(N,\)"),
        (altered(5, name="stem"), "several layers are called 'stem'"),
        (altered(5, bias=np.zeros(4, int)), r"layer 5 \(head\): bias is \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_layer_and_the_limit(net: Net, message: str, tmp_path: Path) -> None:
    with pytest.raises(NetxError, match=message):
        netx.write(net, tmp_path / "a.net")
    assert not list(tmp_path.iterdir())


def without(*indices: int) -> Net:
    net = netmaker.random_net(0)
    return dataclasses.replace(net, layers=tuple(x for i, x in enumerate(net.layers) if i not in indices))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool:
    name: str = "pool"
    shape: tuple[int, ...] = (1,)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (without(0), "the first layer must be an InputLayer"),
        (without(4, 5), "the last layer must be a convolution or a dense layer"),
        (without(3), r"layer 3 \(hidden\): .*put a flatten layer before it"),
        (Net(layers=()), "the first layer must be an InputLayer"),
        (
            Net(layers=(InputLayer(shape=(4,)), FlattenLayer(shape=(4,)), *netmaker.random_net(0).layers[4:])),
            r"layer 1 \(flatten\): its input is \(4,\)",
        ),
        (
            Net(layers=(InputLayer(shape=(4,)), MaxPool(), *netmaker.random_net(0).layers[4:])),  # type: ignore[arg-type]
            r"layer 1 \(pool\): netx has no MaxPool; it has InputLayer",
        ),
    ],
)
def test_layers_that_do_not_chain_are_refused(net: Net, message: str) -> None:
    with pytest.raises(NetxError, match=message):
        netx.check(net)


def test_more_groups_than_netx_can_count_are_refused_with_the_way_out() -> None:
    rng = np.random.default_rng(0)
    for groups in (127, 128):
        shape = (groups, 2, 2)
        pool = netmaker.conv(rng, "pool", shape, out=groups, groups=groups, neuron=netmaker.readout())
        net = Net(layers=(InputLayer(shape=shape), pool))
        if groups == 127:
            netx.check(net)
        else:
            with pytest.raises(
                NetxError, match="at most 127, one is 128; write a wide depthwise layer as a block-diag"
            ):
                netx.check(net)


def test_the_limits_come_from_the_chip_file() -> None:
    limits = Limits.load("loihi2")
    assert (limits.weight_bits, limits.bias, limits.threshold, limits.decay) == (8, 4095, 131071, 4096)
    narrow = dataclasses.replace(limits, weight_bits=4)
    with pytest.raises(NetxError, match=r"beyond 4 bits: -8\.\.7 for mixed signs"):
        netx.check(netmaker.random_net(0), narrow)


Edit = Callable[[h5py.File], None]


def replaced(path: str, value: Any) -> Edit:
    def edit(file: h5py.File) -> None:
        if path in file:
            del file[path]
        file[path] = value

    return edit


def removed(path: str) -> Edit:
    return lambda file: file.__delitem__(path)


def complex_weight(file: h5py.File) -> None:
    real = file["layer/5"].pop("weight")[()]
    file["layer/5/weight/real"], file["layer/5/weight/imag"] = real, real


def edited(folder: Path, edit: Edit) -> Path:
    path = folder / "edited.net"
    netx.write(netmaker.random_net(0), path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (removed("layer"), "no group 'layer'; this is an HDF5 file, but not netx's"),
        (removed("layer/2"), "group 'layer' has 5 entries but no '2'"),
        (removed("layer/1/type"), r"layer 1: no dataset 'type'"),
        (replaced("layer/3/type", b"pool"), r"layer 3 \(flatten\): unsupported layer type 'pool' \(write max pooling"),
        (
            replaced("layer/3/type", b"add"),
            r"layer 3 \(flatten\): unsupported layer type 'add' \(stock netx .* skips it",
        ),
        (removed("layer/1/neuron"), r"layer 1 \(stem\): no 'neuron' group"),
        (replaced("layer/1/neuron/type", b"SDNN"), r"layer 1 \(stem\): neuron type 'SDNN' is not supported"),
        (replaced("layer/1/neuron/messageBits", 8), r"layer 1 \(stem\): neuron has messageBits"),
        (replaced("layer/1/neuron/gradedSpike", True), r"layer 1 \(stem\): neuron has graded spikes"),
        (replaced("layer/1/neuron/refDelay", 3), r"layer 1 \(stem\): neuron has a refractory delay"),
        (replaced("layer/1/neuron/vThMant", [1, 2, 3, 4]), r"layer 1 \(stem\): neuron: vThMant has shape \(4,\)"),
        (removed("layer/1/neuron/vDecay"), r"layer 1 \(stem\): neuron: no dataset 'vDecay'"),
        (
            replaced("layer/5/weight", np.full((5, 12), 1.5)),
            r"layer 5 \(head\): weight has values that are not 32-bit int",
        ),
        (replaced("layer/5/weight", np.full((5, 12), np.nan)), r"layer 5 \(head\): weight has values that are not"),
        (complex_weight, r"layer 5 \(head\): no dataset 'weight' \(a complex one\?\)"),
        (replaced("layer/5/weight", "many"), r"layer 5 \(head\): weight is not an array of numbers"),
        (replaced("layer/5/weight", h5py.Empty("f")), r"layer 5 \(head\): weight is not an array of numbers"),
        (replaced("layer/1/weight", np.ones((4, 27))), r"layer 1 \(stem\): weight is \(4, 27\)"),
        (replaced("layer/1/delay", np.ones(4)), r"layer 1 \(stem\): has synaptic delays"),
        (replaced("layer/1/stride", [1, 1, 1]), r"layer 1 \(stem\): stride has 3 values"),
        (replaced("layer/0/neuron/vThMant", 1), r"layer 0 \(input\): neuron: no dataset 'type'"),
        (removed("layer/0/shape"), r"layer 0 \(input\): no dataset 'shape'"),
        (replaced("tserve", "{"), "its dataset 'tserve' is not JSON"),
        (replaced("tserve", "[]"), "its dataset 'tserve' is not a JSON object"),
        (replaced("tserve", [1, 2]), "its dataset 'tserve' is not JSON"),
    ],
)
def test_a_file_that_netx_would_misread_is_refused(edit: Edit, message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, edit)
    with pytest.raises(NetxError, match=message) as caught:
        netx.read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not HDF5"])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    path.write_bytes(content)
    with pytest.raises(NetxError, match="not a whole HDF5 file"):
        netx.read(path)


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    netx.write(netmaker.random_net(0), path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(NetxError, match="not a whole HDF5 file"):
            netx.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetxError, match="no such file"):
        netx.read(tmp_path / "a.net")


def test_a_slayer_file_is_read_with_the_input_that_netx_infers(tmp_path: Path) -> None:
    netmaker.write_as_slayer(tmp_path / "slayer.net", np.random.default_rng(0))
    net = netx.read(tmp_path / "slayer.net")
    netx.check(net)
    kinds: list[type[Layer]] = [InputLayer, DenseLayer, DenseLayer]
    assert [type(layer) for layer in net.layers] == kinds
    assert net.input.shape == (6,)
    assert net.spiking[0].neuron == Neuron(vThMant=80, vDecay=128, iDecay=1024)
    assert net.spiking[0].weight.dtype == np.int64
    assert not net.spiking[0].bias.any()
    assert net.meta == {}


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """The HDF5 library breaks off with a segmentation fault where its last write fails; a limit stands for the disk."""
    script = (
        "import resource, signal, sys, netmaker; from hardware import netx;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "netx.write(netmaker.random_net(0), sys.argv[1])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(netmaker.__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script, str(tmp_path / "a.net")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert not list(tmp_path.iterdir())
