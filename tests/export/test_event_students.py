"""Students of events: their recordings as the exports read them, and which commands take them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from live_networks import live_network

from export import bundle, energy, to_loihi, to_onnx, verify
from export.images import real_images
from hardware import netx
from train import cli, data
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig
from train.datasets.dataset import Dataset, Split


NET = NetConfig(width=0.25, T=3, in_channels=2, size=12, num_classes=2, event=True)
COUNTS = np.random.default_rng(0).poisson(0.5, (9, 3, 2, 12, 12)).astype(np.uint8)  # [N, T, C, H, W]


def dataset(_config: DataConfig) -> Dataset:
    """Nine recordings of noise, the last five for the test."""
    whole = Split(
        images=torch.from_numpy(COUNTS), labels=torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 0]), indices=torch.arange(9)
    )
    return Dataset(
        name="dvs_gesture",
        train=whole.take(torch.arange(4)),
        val=whole.take(torch.arange(0)),
        test=whole.take(torch.arange(4, 9)),
        classes=("wave", "clap"),
        mean=(0.0, 0.0),
        std=(1 / 255, 1 / 255),
        size=12,
        channels=2,
        mirror=False,
        frames=3,
        md5={},
    )


def put_in_place(monkeypatch: pytest.MonkeyPatch, load: Callable[[DataConfig], Dataset]) -> None:
    """Let `load` give the recordings, for which the true ones must not be there."""
    monkeypatch.delitem(data.DATASETS, "dvs_gesture")
    monkeypatch.setitem(data.DATASETS, "dvs_gesture", load)


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose data set is the recordings above."""
    put_in_place(monkeypatch, dataset)
    checkpoint = Checkpoint(
        net=NET,
        weights=live_network(NET, torch.from_numpy(COUNTS).double().transpose(0, 1)).state_dict(),
        preprocess=Preprocess(mean=(0.0, 0.0), std=(1 / 255, 1 / 255), size=12),
        labels=("wave", "clap"),
        provenance={"config": {"data": cli.to_dict(DataConfig(name="dvs_gesture")), "method": {"name": "ce"}}},
    )
    checkpoint.save(tmp_path / "student.pt")
    return tmp_path / "student.pt"


def test_recordings_have_their_time_first_and_batches_of_them_are_what_a_student_takes(student: Path) -> None:
    checkpoint = Checkpoint.load(student)
    real = real_images(checkpoint, limit=4)
    assert len(real) == 4
    assert real.images.shape == (3, 4, 2, 12, 12)
    assert real.images.dtype == np.float32
    np.testing.assert_array_equal(np.rint(real.images * 255), COUNTS[4:8].transpose(1, 0, 2, 3, 4))
    assert real.indices.tolist() == [4, 5, 6, 7]
    part = real.batch(slice(1, 3))
    np.testing.assert_array_equal(part, real.images[:, 1:3])
    with torch.no_grad():
        network = checkpoint.network()
        whole, some = (network(checkpoint.preprocess(torch.from_numpy(x))) for x in (real.images, part))
    assert whole.shape == (3, 4, 2)
    torch.testing.assert_close(some, whole[:, 1:3])


def test_batches_of_images_are_rows(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def still(config: DataConfig) -> Dataset:
        moving = dataset(config)
        splits = {name: getattr(moving, name) for name in ("train", "val", "test")}
        first = {name: dataclasses.replace(split, images=split.images[:, 0]) for name, split in splits.items()}
        return dataclasses.replace(moving, frames=None, **first)

    put_in_place(monkeypatch, still)
    real = real_images(Checkpoint.load(student))
    assert (len(real), real.images.shape) == (5, (5, 2, 12, 12))
    np.testing.assert_array_equal(real.batch(slice(2, 4)), real.images[2:4])


@pytest.mark.parametrize("command", [to_onnx.command, bundle.command])
def test_what_cannot_take_events_says_which_command_does_and_leaves_nothing(
    command: Callable[[list[str]], int],
    student: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bundle, "write_netx", lambda *_: {"unsupported": "left out"})
    assert cli.exit_status(lambda: command([str(student)])) == 2
    message = capsys.readouterr().err
    assert "trained on frames of events [T, B, C, H, W]" in message
    assert "python -m export.to_loihi" in message
    assert [path.name for path in student.parent.iterdir()] == ["student.pt"]


def test_energy_counts_recordings_whose_first_layer_works_at_every_step(student: Path) -> None:
    result = energy.main(energy.EnergyConfig(checkpoint=student, samples=4))
    report = json.loads(result.json.read_text())
    assert report["images"] == {"dataset": "dvs_gesture", "split": "test", "indices": [4, 5, 6, 7], "count": 4}
    stem = report["layers"][0]
    assert (stem["name"], stem["input"], report["per_image"]["static_macs"]) == ("stem.conv", "graded", 0)
    # 3 x 3 taps of stride 1 and padding 1: a pixel reaches 9 positions of each channel, fewer at the border.
    reach = np.ones(12) * 3
    reach[[0, -1]] = 2
    expected = ((COUNTS[4:8] > 0) * np.outer(reach, reach)).sum((1, 2, 3, 4)).mean() * stem_channels()
    assert stem["sops"] == stem["macs"] == pytest.approx(expected)
    assert result.plot.is_file()


def stem_channels() -> int:
    return round(32 * NET.width)


@pytest.mark.lava
def test_a_student_of_events_runs_in_lava_bit_for_bit(student: Path) -> None:
    report = to_loihi.main(to_loihi.LoihiConfig(checkpoint=student, samples=4, finetune=1))
    assert (report["ok"], report["verify"]["flips"], report["window"]) == (True, 0, 4)
    assert report["verify"]["spikes"] > 100
    assert report["input"]["event"] is True
    assert report["input"]["scale"] == 1.0  # counts are sent as they are
    net = netx.read(student.parent / "student.net")
    assert net.spiking[0].neuron.iDecay == 4096  # nothing is held: every step brings its own frame
    verdict, _ = verify.main(
        verify.VerifyConfig(
            checkpoint=student.parent / report["finetuned"]["file"], file=student.parent / "student.net", samples=4
        )
    )
    assert verdict.ok
