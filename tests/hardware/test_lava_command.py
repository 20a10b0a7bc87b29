"""python -m hardware.lava: what it prints, writes and returns."""

from pathlib import Path

import netmaker
import numpy as np
import pytest

from hardware import netx, netx_sim
from hardware.lava import __main__ as command
from hardware.net import InputLayer, Net


@pytest.mark.lava
def test_the_command_prints_rates_and_classes_and_writes_spikes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = netmaker.random_net(10)
    images = netmaker.images(10, net)
    netx.write(net, tmp_path / "a.net")
    np.save(tmp_path / "x.npy", images)
    out = tmp_path / "o.npz"
    assert command.cli([str(tmp_path / "a.net"), "--images", str(tmp_path / "x.npy"), "--out", str(out)]) == 0
    expected = netx_sim.simulate(net, images)
    printed = capsys.readouterr().out
    assert f"stem        {'x'.join(map(str, net.spiking[0].shape)):>11}" in printed
    assert f"firing rate {expected.spikes[1].mean():.4f}" in printed
    assert "argmax of the logits: " + " ".join(map(str, expected.v_out[-1].argmax(axis=1))) in printed
    with np.load(out, allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted([*(f"spikes/{name}" for name in expected.names), "v_out"])
        np.testing.assert_array_equal(arrays["spikes/block.conv"], expected.spikes[1])
        np.testing.assert_array_equal(arrays["v_out"], expected.v_out)


@pytest.mark.lava
def test_labels_give_the_accuracy_from_the_output_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = netmaker.random_net(10)
    images = netmaker.images(10, net, 20)
    classes = netx_sim.simulate(net, images).v_out[-1].argmax(axis=1)
    labels = np.where(np.arange(20) < 7, (classes + 1) % 5, classes)
    netx.write(net, tmp_path / "a.net")
    for name, array in (("x", images), ("y", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    files = [str(tmp_path / name) for name in ("a.net", "x.npy", "y.npy")]
    assert command.cli([files[0], "--images", files[1], "--labels", files[2], "--record", "output"]) == 0
    printed = capsys.readouterr()
    assert "accuracy by the logits: 0.6500 (13 of 20)" in printed.out
    assert "head" in printed.out
    assert "stem" not in printed.out
    assert not printed.err  # progress is for terminals


def test_a_readout_that_fires_is_read_by_its_spikes() -> None:
    spikes = np.array([[[1, 0, 1], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.uint8)  # [T, B, N]
    run = netx_sim.Run(names=("head",), spikes=(spikes,), v_out=np.array([[[0, 9, 0]] * 2] * 2))
    found, source = command.classes(netmaker.random_net(0), run)
    assert (found.tolist(), source) == ([0, 2], "number of spikes")
    silent = netx_sim.Run(names=("head",), spikes=(0 * spikes,), v_out=run.v_out)
    assert command.classes(netmaker.random_net(0), silent)[0].tolist() == [1, 1]


def test_the_report_says_what_an_input_layer_with_neurons_asks_for() -> None:
    first = InputLayer(shape=(4,), neuron=netmaker.readout(), weight=36, bias=-5)
    head = netmaker.dense(np.random.default_rng(0), "head", 4, 3, neuron=netmaker.readout())
    net = Net(layers=(first, head), meta={"T": 2})
    report = command.report(net, netx_sim.simulate(net, np.ones((2, 4), int)))
    assert "for data x the file asks for 36 * x + -5" in report
    assert "input            4  firing rate 0.0000" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.net", "--images", "none.npy"], "none.npy: cannot be read as .npy"),
        (["a.net", "--images", "pickled.npy"], "pickled.npy: cannot be read as .npy"),
        (["a.net", "--images", "several.npz"], "several.npz: holds several arrays"),
        (["b.net", "--images", "x.npy"], "b.net: no such file"),
        (["a.net", "--images", "x.npy"], r"images are (2, 2), must be [B, 3, 6,"),
        (["a.net", "--images", "x.npy", "--out", "no/o.npz"], "there is no directory no"),
    ],
)
def test_bad_input_ends_the_command_with_status_2(
    arguments: list[str],
    message: str,
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(written.parent)
    np.save("x.npy", np.zeros((2, 2), int))
    # Only writing may pickle: this is the hostile input that the command must refuse to read.
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("several.npz", a=np.zeros(1), b=np.zeros(1))
    assert command.cli(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert not printed.out


def test_an_ended_simulation_gives_status_1(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(netmaker.fake_python(tmp_path, "raise SystemExit(7)")))
    np.save(tmp_path / "x.npy", netmaker.images(0, netx.read(written)))
    out = tmp_path / "o.npz"
    assert command.cli([str(written), "--images", str(tmp_path / "x.npy"), "--out", str(out)]) == 1
    assert "error: Lava's simulation ended with exit status 7" in capsys.readouterr().err
    assert not out.exists()
