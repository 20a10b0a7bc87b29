"""Less memory, the same numbers: gradients, spikes and running statistics are those of the ordinary step."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from train.config import NetConfig
from train.memory import spikes_as_bytes
from train.methods.base import cross_entropy
from train.networks import Network, build
from train.neurons import set_fused


def step(network: Network, *, fused: bool, compress: bool = False, segments: int = 0) -> tuple[list[Tensor], int]:
    """Gradients and buffers after one step, and the bytes that were kept for the way back."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
    set_fused(network, fused)
    network.segments = segments
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), spikes_as_bytes(network, compress):
        loss = cross_entropy(network(images), torch.arange(4))
    loss.backward()
    found = [p.grad for p in network.parameters() if p.grad is not None] + list(network.buffers())
    return found, sum(kept.values())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        *({"name": name} for name in ("vgg_small", "resnet18", "resnet19_ckd", "sew_resnet18")),
        {"neuron": "plif", "reset": "soft"},
    ],
    ids=str,
)
def test_compressed_spikes_and_segments_change_no_bit(options: dict[str, Any], fused: bool) -> None:
    torch.manual_seed(0)
    network = build(NetConfig(in_channels=3, size=32, width=0.25, **options))
    ordinary, _ = step(network, fused=fused)
    assert len(ordinary) > 20
    for changed in ({"compress": True}, {"segments": 3}, {"compress": True, "segments": 2}):
        found, _ = step(network, fused=fused, **changed)
        assert all(torch.equal(a, b) for a, b in zip(found, ordinary, strict=True)), changed


def test_what_is_kept_between_segments_is_little() -> None:
    network = build(NetConfig(name="resnet18", in_channels=3, size=32, width=0.25))
    (_, all_of_it), (_, some) = step(network, fused=True), step(network, fused=True, segments=4)
    assert some < 0.5 * all_of_it


@pytest.mark.parametrize("compress", [False, True])
def test_compressed_spikes_are_not_kept_as_floats(compress: bool) -> None:
    lif = build(NetConfig(in_channels=3, size=32)).body.act1
    x = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    with spikes_as_bytes(lif, compress):
        spikes = lif(x)
        out = (spikes * torch.ones(8, requires_grad=True)).sum()
    floats = StorageWeakRef(spikes.untyped_storage())
    del spikes
    assert floats.expired() == compress
    assert torch.equal(torch.autograd.grad(out, x)[0], torch.autograd.grad(lif_sum(lif, x), x)[0])


def lif_sum(lif: torch.nn.Module, x: Tensor) -> Tensor:
    lif.reset()
    return lif(x).sum()
