"""How a .net file stores its numbers, and layers that other tools write: input neurons, a dense layer without any."""

import dataclasses
from pathlib import Path

import h5py
import netmaker
import numpy as np
import pytest

from hardware import lava, netx, netx_sim
from hardware.net import INTEGRATOR, ConvLayer, DenseLayer, FlattenLayer, InputLayer, Net, Neuron


def dense_net(weight: np.ndarray, bias: np.ndarray) -> Net:
    layer = DenseLayer(name="d", shape=bias.shape, weight=weight, bias=bias, neuron=netmaker.readout())
    return Net(layers=(InputLayer(shape=(weight.shape[1],)), layer), meta={"T": 2})


@pytest.mark.parametrize(
    ("weights", "biases", "types"),
    [
        ((-128, 127), (0, 127), ("int8", "int8")),
        ((0, 128), (0, 128), ("int16", "int16")),
        ((-256, 254), (-4095, 4095), ("int16", "int16")),
        ((0, 255), (-129, 0), ("int16", "int16")),
    ],
)
def test_numbers_take_the_smallest_type_that_holds_them(
    weights: tuple[int, int], biases: tuple[int, int], types: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.net"
    net = dense_net(np.array([weights, weights]), np.array(biases))
    netx.write(net, path)
    with h5py.File(path) as file:
        assert tuple(file[f"layer/1/{key}"].dtype.name for key in ("weight", "bias")) == types
    read = netx.read(path).spiking[0]
    np.testing.assert_array_equal(read.weight, net.spiking[0].weight)
    np.testing.assert_array_equal(read.bias, net.spiking[0].bias)
    assert (read.weight.dtype, read.bias.dtype) == (np.int64, np.int64)


def test_a_pruned_network_is_a_small_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (256, 1024)) * (rng.random((256, 1024)) < 0.5)
    netx.write(dense_net(weight, np.zeros(256, int)), tmp_path / "a.net")
    assert (tmp_path / "a.net").stat().st_size < 0.75 * weight.size + 20_000  # 8 * weight.size as int64
    np.testing.assert_array_equal(netx.read(tmp_path / "a.net").spiking[0].weight, weight)


def with_input_neurons(shape: tuple[int, ...], *, hold: bool, T: int) -> Net:
    rng = np.random.default_rng(T)
    first = InputLayer(
        shape=shape, neuron=Neuron(vThMant=60, vDecay=1000, iDecay=0 if hold else 4096), weight=36, bias=34
    )
    if len(shape) == 1:
        return Net(layers=(first, netmaker.dense(rng, "d", shape[0], 6, neuron=netmaker.readout())), meta={"T": T})
    conv = netmaker.conv(rng, "c", shape, out=4, neuron=Neuron(vThMant=100, vDecay=2048))
    features = int(np.prod(conv.shape))
    head = netmaker.dense(rng, "d", features, 6, neuron=netmaker.readout())
    return Net(layers=(first, conv, FlattenLayer(shape=(features,)), head), meta={"T": T})


def test_input_neurons_survive_the_file_and_are_a_block_without_weights(tmp_path: Path) -> None:
    net = with_input_neurons((2, 4, 5), hold=True, T=3)
    netx.write(net, tmp_path / "a.net")
    read = netx.read(tmp_path / "a.net")
    assert (read.input.neuron, read.input.weight, read.input.bias) == (net.input.neuron, 36, 34)
    assert [block.name for block in read.blocks] == ["input", "c", "d"]
    assert [layer.name for layer in read.spiking] == ["c", "d"]


def test_a_neuron_group_alone_gives_an_input_layer_netxs_weight(tmp_path: Path) -> None:
    netx.write(with_input_neurons((7,), hold=True, T=3), tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net", "r+") as file:
        del file["layer/0/weight"], file["layer/0/bias"]
    assert (netx.read(tmp_path / "a.net").input.weight, netx.read(tmp_path / "a.net").input.bias) == (64, 0)


@pytest.mark.lava
def test_lava_and_the_model_agree_on_input_neurons_and_on_a_dense_layer_without_any(tmp_path: Path) -> None:
    """For every T, images and events, held and sent at every step, and an input that is flattened at once."""
    jobs = []
    for T in (1, 2, 3, 4, 6, 7):
        for shape in ((2, 4, 5), (7,)):
            for hold in (True, False):
                net = with_input_neurons(shape, hold=hold, T=T)
                head = dataclasses.replace(net.layers[-1], neuron=INTEGRATOR if T % 2 else netmaker.readout())
                path = tmp_path / f"{T}{len(shape)}{hold}.net"
                netx.write(dataclasses.replace(net, layers=(*net.layers[:-1], head)), path)
                images = netmaker.images(T, net, 3)
                jobs.append(lava.Job(path=path, images=images))
                events = np.stack([np.roll(images, t, axis=-1) for t in range(T)])
                jobs.append(lava.Job(path=path, images=events, record="output"))
    net = with_input_neurons((2, 4, 5), hold=False, T=5)
    head = netmaker.dense(np.random.default_rng(5), "d", 40, 6, neuron=netmaker.readout())
    netx.write(dataclasses.replace(net, layers=(net.input, FlattenLayer(shape=(40,)), head)), tmp_path / "flat.net")
    jobs.append(lava.Job(path=tmp_path / "flat.net", images=netmaker.images(5, net, 3)))
    for job, run in zip(jobs, lava.run_many(jobs), strict=True):
        expected = netx_sim.simulate(netx.read(job.path), job.images)
        assert expected.spikes[0].any()
        assert run.names == (expected.names if job.record == "all" else expected.names[-1:])
        for name, spikes in zip(run.names, run.spikes, strict=True):
            np.testing.assert_array_equal(spikes, expected.spikes[expected.names.index(name)], err_msg=str(job.path))
        np.testing.assert_array_equal(run.v_out, expected.v_out, err_msg=str(job.path))


def test_a_dense_layer_without_neurons_sums_its_input_and_adds_its_bias_once(tmp_path: Path) -> None:
    net = dense_net(np.array([[3, -5], [7, 2]]), np.array([10, -20]))
    net = dataclasses.replace(net, layers=(net.input, dataclasses.replace(net.layers[1], neuron=INTEGRATOR)))
    netx.write(net, tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net") as file:
        assert "neuron" not in file["layer/1"]
    read = netx.read(tmp_path / "a.net")
    assert read.spiking[0].neuron == INTEGRATOR
    events = np.array([[[1, 0]], [[0, 1]], [[1, 1]]])
    run = netx_sim.simulate(read, events, T=3)
    assert (run.v_out[:, 0] / 64).tolist() == [[13, -13], [8, -11], [6, -2]]
    assert not run.spikes[0].any()


def test_a_convolution_without_neurons_is_refused(tmp_path: Path) -> None:
    net = netmaker.random_net(0)
    assert isinstance(net.layers[1], ConvLayer)
    netx.write(net, tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net", "r+") as file:
        del file["layer/1/neuron"]
    with pytest.raises(netx.NetxError, match=r"layer 1 \(stem\): no 'neuron' group; netx stops there too"):
        netx.read(tmp_path / "a.net")
