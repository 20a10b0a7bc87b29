"""Lava itself judges the numpy simulation and the file; what needs no Lava is how its absence is told."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import netmaker
import numpy as np
import pytest

from hardware import lava, netx, netx_sim
from hardware.net import DenseLayer, FlattenLayer, InputLayer, Net, NetxError, Neuron


def assert_same(a: netx_sim.Run, b: netx_sim.Run) -> None:
    assert a.names == b.names
    for name, one, other in zip(a.names, a.spikes, b.spikes, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    np.testing.assert_array_equal(a.v_out, b.v_out)


def judged(net: Net, images: np.ndarray, path: Path, **options: bool) -> netx_sim.Run:
    """Run a net in Lava and hold the numpy simulation against it, every spike and every last membrane."""
    netx.write(net, path)
    run = lava.run(path, images, **options)  # type: ignore[arg-type]
    assert_same(run, netx_sim.simulate(netx.read(path), images))
    return run


IF, TAU_2, SLOW, FORGETFUL = 0, 2048, 500, 4096


@pytest.mark.parametrize(
    ("T", "hold", "v_decay", "i_decay"),
    [
        (1, True, TAU_2, 4096),
        (2, False, IF, 4096),
        (3, True, SLOW, 4096),
        (4, True, TAU_2, 4096),
        (5, False, TAU_2, 1000),
        (6, True, IF, 4095),
        (7, False, FORGETFUL, 4096),
    ],
)
@pytest.mark.lava
def test_lava_gives_the_same_bits(T: int, hold: bool, v_decay: int, i_decay: int, tmp_path: Path) -> None:
    net = netmaker.random_net(T, T=T, hold=hold, v_decay=v_decay, i_decay=i_decay)
    run = judged(net, netmaker.images(T, net), tmp_path / "a.net")
    assert sum(int(spikes.sum()) for spikes in run.spikes) > 50
    assert run.v_out.shape == (T, 3, 5)


@pytest.mark.lava
def test_lavas_own_convolution_gives_the_same_bits(tmp_path: Path) -> None:
    net = netmaker.random_net(12, T=2)
    judged(net, netmaker.images(12, net, 2), tmp_path / "a.net", stock_conv=True)


@pytest.mark.lava
def test_lava_wraps_currents_and_saturates_membranes_at_the_same_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = netmaker.dense(rng, "d", 3, 40, neuron=Neuron(vThMant=131071, vDecay=100, iDecay=0))
    layer = dataclasses.replace(layer, bias=np.where(np.arange(40) % 2, 4095, -4095))
    net = Net(layers=(InputLayer(shape=(3,)), layer), meta={"T": 6})
    images = np.concatenate([np.full((1, 3), 999), netmaker.images(0, net, 4, lo=-1900, hi=1900)])
    assert np.abs(images @ layer.weight.T).max() > 131072  # 2^23 after the shift by 6
    run = judged(net, images, tmp_path / "a.net")
    assert run.spikes[0].any()
    assert (run.v_out.min(), run.v_out.max()) == (1 - 2**23, 2**23 - 1)


@pytest.mark.lava
def test_lava_takes_every_weight_format_that_check_allows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    formats = [
        rng.integers(-128, 128, (16, 9)),
        2 * rng.integers(-128, 128, (12, 16)),
        rng.integers(0, 256, (10, 12)),
        rng.integers(-256, 0, (8, 10)),
        rng.integers(-3, 1, (8, 8)),
        np.ones((6, 8), int),
        64 * rng.integers(-1, 2, (5, 6)),
    ]
    neurons = Neuron(vThMant=90, vDecay=1024)
    layers = [
        DenseLayer(name=f"d{i}", shape=(len(w),), weight=w, bias=np.full(len(w), 60), neuron=neurons)
        for i, w in enumerate(formats)
    ]
    net = Net(layers=(InputLayer(shape=(1, 3, 3)), FlattenLayer(shape=(9,)), *layers), meta={"T": 4})
    judged(net, netmaker.images(1, net, 4), tmp_path / "a.net")


@pytest.mark.lava
def test_events_and_a_slayer_file_run(tmp_path: Path) -> None:
    path = tmp_path / "slayer.net"
    netmaker.write_as_slayer(path, np.random.default_rng(1))
    events = np.random.default_rng(2).integers(0, 2, (6, 5, 6))
    run = lava.run(path, events, T=6)
    assert run.spikes[0].any()
    assert_same(run, netx_sim.simulate(netx.read(path), events, T=6))


STOCK = """
import sys
sys.path.insert(0, sys.argv[1])
import simulate  # only for its imports
import numpy as np
from lava.lib.dl.netx import hdf5
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source

path, frames, out, steps = sys.argv[2], np.load(sys.argv[3]), sys.argv[4], int(sys.argv[5])
net = hdf5.Network(path, input_message_bits=8, reset_interval=4, reset_offset=1)
source = Source(data=np.pad(frames[0].transpose(2, 1, 0)[..., None], ((0, 0),) * 3 + ((0, steps - 1),)))
source.s_out.connect(net.inp)
sink = Sink(shape=net.layers[2].out.shape, buffer=steps)
net.layers[2].out.connect(sink.a_in)
net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
np.save(out, sink.data.get())
net.stop()
"""


@pytest.mark.lava
def test_stock_netx_reads_the_file_and_a_stock_sink_sees_the_same_spikes(tmp_path: Path) -> None:
    net = netmaker.random_net(9)
    images = netmaker.images(9, net, 1)
    netx.write(net, tmp_path / "a.net")
    np.save(tmp_path / "frames.npy", images.astype(np.int32))
    (tmp_path / "stock.py").write_text(STOCK, encoding="utf-8")
    steps = 4 + 4
    subprocess.run(
        [
            str(lava.python()),
            "-I",
            str(tmp_path / "stock.py"),
            str(lava.SIMULATE.parent),
            str(tmp_path / "a.net"),
            str(tmp_path / "frames.npy"),
            str(tmp_path / "out.npy"),
            str(steps),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    # A spike of layer k (from 0) at step t leaves in time step 2 + k + t, which is column 1 + k + t.
    seen = np.load(tmp_path / "out.npy")[:, 3:7].T
    expected = netx_sim.simulate(net, images).spikes[2][:, 0]
    assert expected.any()
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.lava
def test_an_altered_weight_is_seen(tmp_path: Path) -> None:
    net = netmaker.random_net(7)
    images = netmaker.images(7, net)
    netx.write(net, tmp_path / "a.net")
    head = net.layers[-1]
    assert isinstance(head, DenseLayer)
    weight = head.weight.copy()
    weight[0, 0] += 1
    altered = dataclasses.replace(net, layers=(*net.layers[:-1], dataclasses.replace(head, weight=weight)))
    run = lava.run(tmp_path / "a.net", images, record="output")
    assert run.names == ("head",)
    assert run.spikes[0].shape == run.v_out.shape
    expected = netx_sim.simulate(net, images)
    assert expected.spikes[-2][..., 0].any()
    np.testing.assert_array_equal(run.v_out, expected.v_out)
    assert np.any(run.v_out != netx_sim.simulate(altered, images).v_out)


def test_a_missing_venv_names_the_command_that_builds_it(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = netmaker.images(0, netx.read(written))
    monkeypatch.setattr(lava, "VENV_PYTHON", tmp_path / "nowhere" / "python")
    monkeypatch.delenv("TSERVE_LAVA_PYTHON", raising=False)
    with pytest.raises(lava.LavaMissing, match="nowhere/python, which is no program; build the venv with: make lava"):
        lava.run(written, images)
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(tmp_path / "other"))
    with pytest.raises(lava.LavaMissing, match=r"TSERVE_LAVA_PYTHON names .*other, .*: make lava"):
        lava.run(written, images)


def test_a_python_without_lava_names_the_command_that_builds_it(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", sys.executable)
    with pytest.raises(lava.LavaMissing, match=r"does not import in .*: make lava\nModuleNotFoundError: .*lava"):
        lava.run(written, netmaker.images(0, netx.read(written)))


def test_a_failed_simulation_gives_the_last_lines_of_its_output(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys\nprint('\\n'.join(map(str, range(100))))\nsys.exit('semaphore lost')"
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(netmaker.fake_python(tmp_path, script)))
    with pytest.raises(lava.LavaFailed, match=r"exit status 1:\n61\n(\d+\n){38}semaphore lost$"):
        lava.run(written, netmaker.images(0, netx.read(written)))


def test_images_and_files_are_checked_before_lava_starts(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(tmp_path / "never started"))
    with pytest.raises(NetxError, match="images have type float64"):
        lava.run(written, np.zeros((1, 3, 6, 7)))
    with pytest.raises(NetxError, match="no such file"):
        lava.run(tmp_path / "b.net", np.zeros((1, 3, 6, 7), int))
