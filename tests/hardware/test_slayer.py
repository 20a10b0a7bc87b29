"""lava-dl's own tools as oracle: what slayer computes and exports against what we write, read and compute."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_lava import assert_same

from hardware import lava, netx, netx_sim
from hardware.net import ConvLayer, DenseLayer, FlattenLayer, InputLayer, Net, Neuron


SCRIPT = Path(__file__).with_name("slayer_export.py")
T = 6


def ours(conv: np.ndarray, dense: np.ndarray) -> Net:
    """The network of slayer_export.py. Its decays are in 1/4096, its thresholds and weights in 1/64."""
    neuron = Neuron(vThMant=80, vDecay=410, iDecay=1024)
    shape = (4, 3, 6)
    return Net(
        layers=(
            InputLayer(shape=(2, 5, 7), neuron=neuron),
            ConvLayer(
                name="conv",
                shape=shape,
                weight=conv,
                bias=np.zeros(4, int),
                stride=(2, 1),
                padding=(1, 0),
                neuron=neuron,
            ),
            FlattenLayer(shape=(72,)),
            DenseLayer(name="dense", shape=(5,), weight=dense, bias=np.zeros(5, int), neuron=neuron),
        ),
        meta={"T": T},
    )


@pytest.mark.lava
def test_slayers_network_and_ours_give_the_same_spikes_in_slayer_in_lava_and_in_the_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    conv, dense = (2 * rng.integers(-50, 61, shape) for shape in ((4, 2, 3, 2), (5, 72)))
    events = rng.integers(0, 2, (T, 8, 2, 5, 7))
    np.savez(tmp_path / "in.npz", conv=conv, dense=dense, events=events)
    arguments = [Path(torch.__file__).parents[1], tmp_path / "in.npz", tmp_path / "slayer.net", tmp_path / "out.npz"]
    done = subprocess.run(
        [str(lava.python()), "-I", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    netx.write(ours(conv, dense), tmp_path / "ours.net")

    sent = 64 * events  # as the weight of the input layer asks
    read = netx.read(tmp_path / "slayer.net")
    assert read.input.weight == 64
    of_slayer, of_ours = lava.run_many(
        [lava.Job(path=tmp_path / name, images=sent, T=T) for name in ("slayer.net", "ours.net")]
    )
    assert_same(netx_sim.simulate(read, sent, T=T), of_slayer)
    assert_same(netx_sim.simulate(ours(conv, dense), sent), of_ours)
    np.testing.assert_array_equal(of_slayer.v_out, of_ours.v_out)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as slayer:
        for name, a, b in zip(of_ours.names, of_slayer.spikes, of_ours.spikes, strict=True):
            assert b.any()
            np.testing.assert_array_equal(a, b, err_msg=name)
            np.testing.assert_array_equal(slayer[name], b, err_msg=name)
