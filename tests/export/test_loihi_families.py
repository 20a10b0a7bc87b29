"""`python -m export.to_loihi` on every family of networks: every spike and logit of the twin, in every layer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_networks import live_network
from PIL import Image

from export import to_loihi
from train import cli
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig


def report_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return content


def live_checkpoint(path: Path, net: NetConfig, data: dict[str, Any]) -> Path:
    """An untrained student of which every layer fires, on images of normal noise at least."""
    channels, side = net.in_channels, net.size
    images = torch.randn(16, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = tuple("0123456789")[: net.num_classes]
    Checkpoint(
        net=net,
        weights=live_network(net, images).float().state_dict(),
        preprocess=Preprocess(mean=(0.3,) * channels, std=(0.4,) * channels, size=side),
        labels=labels,
        provenance={"config": {"data": data, "method": {"name": "ce"}}, "seed": 0, "device": "cpu", "versions": {}},
    ).save(path)
    return path


def exports(path: Path) -> dict[str, Any]:
    """Export with the reference engine on a few images; the report."""
    flags = ["--verify", "reference", "--samples", "4", "--calibration", "12", "--test_images", "20"]
    assert to_loihi.command([str(path), *flags]) == 0
    report = report_of(path.with_name("student.net"))
    verdict = report["verify"]
    assert (verdict["ok"], verdict["flips"], verdict["max_logit_difference"], verdict["images"]) == (True, 0, 0.0, 4)
    firing = [layer["spikes"] > 0 for layer in verdict["layers"]]
    assert sum(firing) >= 0.9 * len(firing)
    return report


@pytest.mark.parametrize("T", [1, 2, 3, 4, 6])
def test_a_resnet20_is_exported_and_verified(T: int, tmp_path: Path) -> None:
    net = NetConfig(name="resnet20", width=0.25, T=T)
    report = exports(live_checkpoint(tmp_path / "student.pt", net, cli.to_dict(DataConfig())))
    assert report["window"] == {1: 1, 2: 2, 3: 4, 4: 4, 6: 8}[T]
    names = [row["name"] for row in report["layers"]]
    assert "body.layer2.0.conv1.conv + relay body.layer1.2.act2" in names
    assert len(names) == 1 + 2 * 9 + 1
    assert set(report["lif_layers"]) == {layer["name"] for layer in report["verify"]["layers"]}


@pytest.mark.parametrize(
    "net",
    [
        NetConfig(name="sew_resnet18", width=0.1, T=4),
        NetConfig(name="sew_resnet18", width=0.1, T=3, tau=3.0, decay_input=False),
        NetConfig(name="resnet18", width=0.1, T=2, neuron="if"),
        NetConfig(name="resnet19_tet", width=0.05, T=4, tau=1.5),
        NetConfig(name="vgg_small", width=0.25, T=7, neuron="plif"),
    ],
    ids=["sew_resnet18", "sew_resnet18 tau 3", "resnet18 if", "resnet19_tet", "vgg_small plif"],
)
def test_other_families_are_exported_and_verified(net: NetConfig, tmp_path: Path) -> None:
    exports(live_checkpoint(tmp_path / "student.pt", net, cli.to_dict(DataConfig())))


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_a_vgg11_is_exported_with_either_pooling(pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSERVE_DATA", raising=False)  # it would win over the folder that the checkpoint names
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for label in "01234":
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
                Image.fromarray(noise).save(folder / f"{i}.png")
    net = NetConfig(name="vgg11", pool=pool, width=0.125, T=2, size=32, in_channels=3, num_classes=5)
    data = cli.to_dict(DataConfig(name="folder", root=tmp_path / "data", size=32, val_fraction=0.0))
    report = exports(live_checkpoint(tmp_path / "student.pt", net, data))
    pools = [row for row in report["layers"] if row["name"].startswith("body.pool")]
    assert [row["vThMant"] for row in pools] == ([0] * 5 if pool == "max" else [])
