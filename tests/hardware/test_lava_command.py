"""python -m hardware.lava: what it prints, writes and returns."""

from pathlib import Path

import netmaker
import numpy as np
import pytest

from hardware import netx, netx_sim
from hardware.lava import __main__ as command


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
