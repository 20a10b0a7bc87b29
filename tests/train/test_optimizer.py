"""Schedule, parameter groups, Muon and averaged weights."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train import optimizer
from train.average import Average, estimated
from train.checkpoint import Preprocess
from train.config import NetConfig, OptimConfig
from train.data import Split
from train.networks import build


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    optim = OptimConfig(lr=0.1, warmup=0.2)
    rates = [optimizer.learning_rate(optim, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 20)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (19, 20)
    assert sorted(rates[20:], reverse=True) == rates[20:]
    assert rates[-1] < 1e-4


def test_only_weights_decay() -> None:
    network = build(NetConfig(name="vgg11", size=32, width=0.1))
    decayed, others = optimizer.parameter_groups(network, OptimConfig(weight_decay=0.5))
    assert all(p.dim() > 1 for p in decayed["params"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_muon_takes_the_bodys_convolutions_and_nothing_else() -> None:
    network = build(NetConfig())
    groups = optimizer.parameter_groups(network, OptimConfig(optimizer="muon"))
    muon = {id(p) for group in groups if group["muon"] for p in group["params"]}
    expected = {id(m.weight) for m in network.body.modules() if isinstance(m, nn.Conv2d)}
    assert muon == expected
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_the_rest_of_muon_is_torchs_nesterov_sgd() -> None:
    torch.manual_seed(0)
    ours, torchs = nn.Linear(5, 3), nn.Linear(5, 3)
    torchs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.1, "weight_decay": 0.01}
    a = optimizer.Muon([{"params": ours.parameters(), "muon": False, **settings}], momentum=0.9, muon_scale=1.0)
    b = torch.optim.SGD(torchs.parameters(), momentum=0.9, nesterov=True, **settings)
    for _ in range(4):
        x = torch.randn(7, 5)
        for network, updates in ((ours, a), (torchs, b)):
            updates.zero_grad()
            network(x).square().sum().backward()
            updates.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours.parameters(), torchs.parameters(), strict=True))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
def test_muon_of_a_matrix_is_torchs() -> None:
    """torch iterates in bfloat16, so the steps agree in direction and length to its precision."""
    torch.manual_seed(0)
    ours, torchs = (nn.Parameter(torch.randn(24, 8, 1, 1)) for _ in range(2))
    torchs = nn.Parameter(ours.detach().flatten(1).clone())
    group = {"params": [ours], "muon": True, "lr": 0.1, "weight_decay": 0.01}
    a = optimizer.Muon([group], momentum=0.9, muon_scale=0.2)
    b = torch.optim.Muon([torchs], lr=0.02, weight_decay=0.01, momentum=0.9, nesterov=True)
    for _ in range(3):
        before = ours.detach().clone(), torchs.detach().clone()
        g = torch.randn(24, 8)
        ours.grad, torchs.grad = g.view(24, 8, 1, 1).clone(), g.clone()
        a.step()
        b.step()
        moved = [(now.detach() - then).flatten() for now, then in zip((ours, torchs), before, strict=True)]
        assert torch.cosine_similarity(*moved, dim=0) > 0.999
        assert float(moved[0].norm() / moved[1].norm()) == pytest.approx(1, rel=0.02)


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    for shape in ((16, 40), (40, 16)):
        values = torch.linalg.svdvals(optimizer.orthogonalised(torch.randn(shape) * 100))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_averaged_weights_get_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    network = build(NetConfig(width=0.25)).train()
    average = Average(network, 0.5)
    reference = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    first = copy.deepcopy(network.state_dict())
    average.update(network)
    reference.update_parameters(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    average.update(network)
    reference.update_parameters(network)
    pairs = zip(average.network.parameters(), reference.module.parameters(), strict=True)
    assert all(torch.equal(ours, torchs) for ours, torchs in pairs)
    weight = "body.conv2.conv.weight"
    assert torch.allclose(average.network.state_dict()[weight], first[weight] + 0.5, atol=1e-6)

    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    split = Split(images=images, labels=torch.zeros(300, dtype=torch.int64), indices=torch.arange(300))
    preprocess = Preprocess(mean=(0.5,), std=(0.25,), size=8)
    kept = estimated(average, split, preprocess)
    drive = kept.stem.conv(preprocess(images[:250])[None])
    assert torch.allclose(kept.stem.norm.running_mean, drive.mean((0, 1, 3, 4)), atol=1e-5)
    assert torch.equal(kept.state_dict()[weight], average.network.state_dict()[weight])
