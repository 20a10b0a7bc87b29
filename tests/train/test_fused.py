"""The fused step is the plain one: SpikingJelly's neuron and torch's normalisation are the oracle."""

import copy
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from train.config import NetConfig
from train.fused import Drive, fire
from train.methods.base import cross_entropy
from train.networks import NETWORKS, Network, Places, build, lif_layers
from train.networks.network import conv_norm
from train.neurons import LIF, SURROGATES, Norm, activation, not_fusable, read_by_neurons, set_fused


ROOT = Path(__file__).parents[2]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def random_lif(draw: random.Random) -> LIF:
    v_threshold = draw.uniform(0.2, 2.0)
    return LIF(
        tau=draw.uniform(1.01, 8.0),
        decay_input=draw.random() < 0.5,
        v_threshold=v_threshold,
        v_reset=draw.choice([0.0, draw.uniform(-1.0, v_threshold - 0.1), None]),
        surrogate_function=SURROGATES[draw.choice([*SURROGATES])](),
        detach_reset=draw.random() < 0.5,
        step_mode="m",
    )


def test_a_fused_lif_gives_spikingjellys_spikes_and_gradients_in_1000_random_cases() -> None:
    differing, spikes, worst = 0, 0, 0.0
    seen: Counter[tuple[str, bool]] = Counter()
    for seed in range(1000):
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        lif = random_lif(draw)
        seen[type(lif.surrogate_function).__name__, lif.v_reset is None] += 1
        T, B, C = draw.randint(1, 8), draw.randint(1, 3), draw.randint(1, 40)
        shape = (T, B, C) if draw.random() < 0.2 else (T, B, C, draw.randint(1, 6), draw.randint(1, 6))
        x = (torch.randn(shape, generator=generator) * 2).requires_grad_()
        g = torch.randn(shape, generator=generator)
        plain: Tensor = lif(x)
        fused = fire(lif, x)
        differing += int((plain != fused).sum())
        spikes += plain.numel()
        (g_plain,), (g_fused,) = (torch.autograd.grad(out, x, g) for out in (plain, fused))
        worst = max(worst, float((g_plain - g_fused).abs().max() / g_plain.abs().max().clamp_min(1e-12)))
        functional.reset_net(lif)
    assert len(seen) == 8
    assert min(seen.values()) > 50
    assert differing == 0, f"{differing} of {spikes} spikes differ"
    assert worst < 1e-5


@pytest.mark.parametrize("shortcut", ["none", "spikes", "normalised", "held", "held and normalised"])
def test_a_normalised_current_has_the_plain_gradients_and_statistics(shortcut: str) -> None:
    torch.manual_seed(0)
    T, B, C = 3, 4, 20
    lif = LIF(tau=2.0, surrogate_function=surrogate.ATan(2.0), detach_reset=True, step_mode="m")
    norms = [Norm(C, step_mode="m").double() for _ in range(2)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(norm.bias, -1.0, 1.0)
    steps = (1 if shortcut.startswith("held") else T, T)
    x, y = (torch.randn(S, B, C, 5, 5, dtype=torch.float64) * 3 + 7 for S in steps)
    if shortcut == "spikes":
        y = (y > 7).double()
    g = torch.randn(T, B, C, 5, 5, dtype=torch.float64)

    def gradients(fused: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        first, second = (copy.deepcopy(norm) for norm in norms)
        for norm in (first, second):
            norm.fused = fused
        inputs = [tensor.clone().requires_grad_() for tensor in (x, y)]
        current = first(inputs[0])
        if shortcut.startswith("held"):
            current = current.held(T) if isinstance(current, Drive) else current.expand(T, *current.shape[1:])
        if shortcut.endswith("normalised"):
            current = current + second(inputs[1])
        elif shortcut == "spikes":
            current = current + inputs[1]
        functional.reset_net(lif)
        out = fire(lif, current) if fused else lif(current)
        wanted = [inputs[0], first.weight, first.bias]
        if shortcut == "spikes":
            wanted.append(inputs[1])
        elif shortcut.endswith("normalised"):
            wanted += [inputs[1], second.weight, second.bias]
        return out, list(torch.autograd.grad(out, wanted, g)), [b.double() for b in first.buffers()]

    plain, fused = gradients(False), gradients(True)
    assert torch.equal(plain[0], fused[0])
    assert 0.02 < float(plain[0].detach().mean()) < 0.98
    assert max(relative(a, b) for a, b in zip(fused[1], plain[1], strict=True)) < 1e-10
    assert max(relative(a, b) for a, b in zip(fused[2], plain[2], strict=True)) < 1e-12


OPTIONS: list[dict[str, Any]] = [
    *({"name": name} for name in NETWORKS),
    {"name": "vgg11", "pool": "max"},
    {"reset": "soft", "surrogate": "triangle", "norm": "tdbn"},
    {"reset": "soft", "surrogate": "rect", "detach_reset": False},
    {"name": "resnet20", "surrogate": "triangle", "decay_input": False, "v_reset": -0.5, "norm": "bn"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_whole_network_takes_the_plain_step_in_float64(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build(NetConfig(in_channels=3, size=32, **{"width": 0.125, **options})).double().train()
    assert check_step(network) == len(lif_layers(network))
    assert all(p.grad is not None for p in network.parameters())


def check_step(plain: Network) -> int:
    """Its training step on random images, fused and not: the same spikes, and gradients and statistics to rounding.

    Gives how many layers of neurons took part.
    """
    fused = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    set_fused(fused, True)
    images, target = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(10, (4,))
    spikes: list[list[Tensor]] = [[], []]
    for network, kept in zip((plain, fused), spikes, strict=True):
        for lif in lif_layers(network).values():
            lif.register_forward_hook(lambda _module, _inputs, out, kept=kept: kept.append(out.detach()))
        cross_entropy(network(images), target).backward()
    assert all(torch.equal(a, b) for a, b in zip(*spikes, strict=True))
    for (path, p), (_, q) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        if p.grad is None or q.grad is None:  # of what takes no part
            assert p.grad is q.grad
            continue
        # A convolution's bias before a normalisation has no gradient but rounding.
        assert relative(q.grad, p.grad) < 1e-9 or float(p.grad.abs().max()) < 1e-12, path
    for (path, b), c in zip(plain.named_buffers(), fused.buffers(), strict=True):
        assert relative(c.double(), b.double()) < 1e-9, path
    return len(spikes[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_normalisation_that_a_neuron_reads_is_fused(name: str) -> None:
    network = build(NetConfig(name=name, width=0.125, in_channels=3, size=32))
    set_fused(network, True)
    apart = [path for path, module in network.named_modules() if isinstance(module, Norm) and not module.fused]
    assert apart == (["body.layer3.1.conv2.norm"] if name == "resnet19_ckd" else [])
    assert all(module.fused for module in lif_layers(network).values())


class Odd(nn.Module):
    """Normalisations that are read in every way: `ways` says by what."""

    def __init__(self, config: NetConfig, *, ways: str) -> None:
        super().__init__()
        self.ways = ways
        self.norm, self.other = (Norm(8, step_mode="m") for _ in range(2))
        self.pool = layer.AvgPool2d(2, step_mode="m")
        self.lif, self.lif2 = activation(config), activation(config)

    def forward(self, x: Tensor) -> Tensor:
        match self.ways:
            case "neurons":
                return self.pool(self.lif(self.norm(x)))
            case "sum":
                return self.pool(self.lif(x + self.norm(x) + self.other(x)))
            case "pool":
                return self.lif(self.pool(self.norm(x)))
            case "both":
                y = self.norm(x)
                return self.lif(self.pool(y)) + self.pool(self.lif2(y))
            case "twice":
                return self.lif(self.pool(self.norm(self.lif2(self.norm(x)))))
            case "values":
                return self.pool(self.lif(self.norm(x) if x.mean() < 2 else x))
        raise AssertionError(self.ways)


@pytest.mark.parametrize(
    ("ways", "left"),
    [
        ("neurons", {"norm"}),
        ("sum", {"norm", "other"}),
        ("pool", set()),
        ("both", set()),
        ("twice", set()),
        ("values", set()),
    ],
)
def test_a_normalisation_that_something_else_reads_is_not_fused(ways: str, left: set[str]) -> None:
    torch.manual_seed(0)
    config = NetConfig(in_channels=3, size=32)
    odd = Odd(config, ways=ways)
    body = nn.Sequential(activation(config), odd, layer.Flatten(), layer.Linear(8 * 16 * 16, 10))
    places = Places(stages=("body.1",), penultimate="body.2", classifier="body.3")
    network = Network(config, conv_norm(3, 8, 3, 1), body, places).double().train()
    assert {name for name, module in odd.named_children() if module in read_by_neurons(network)} == left
    assert check_step(network)


def test_a_network_of_learned_time_constants_is_left_to_spikingjelly() -> None:
    torch.manual_seed(0)
    plain = build(NetConfig(neuron="plif", width=0.25)).train()
    left = copy.deepcopy(plain)
    set_fused(left, True)
    assert not_fusable(left) == "neurons of the kind PLIF"
    assert not any(module.fused for module in left.modules() if isinstance(module, Norm))
    images = torch.randn(4, 1, 8, 8)
    out = [network(images) for network in (plain, left)]
    assert torch.equal(*out)
    for logits in out:
        logits.sum().backward()
    grads = [p.grad for p in left.parameters()]
    assert all(torch.equal(p.grad, g) for p, g in zip(plain.parameters(), grads, strict=True))


STEP = """
import hashlib, torch
from spikingjelly.activation_based import surrogate
from train.fused import fire, normalise
from train.neurons import LIF, Norm

torch.manual_seed(0)
norm, x, g = Norm(24, step_mode="m"), torch.randn(4, 8, 24, 19, 19, requires_grad=True), torch.randn(4, 8, 24, 19, 19)
out = fire(LIF(tau=2.0, surrogate_function=surrogate.ATan(2.0), step_mode="m"), normalise(norm, x, sync=False))
found = (out, *torch.autograd.grad(out, [x, norm.weight, norm.bias], g))
print(torch.get_num_threads(), hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in found)).hexdigest())
"""


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    found = {}
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        command = [sys.executable, "-c", STEP]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        used, digest = done.stdout.split()
        found[used] = digest
    assert list(found) == ["1", "2"]
    assert len(set(found.values())) == 1


def test_what_is_kept_for_the_way_back_is_the_convolutions_output_and_the_spikes() -> None:
    """The normalised current and the membranes are not."""
    network = build(NetConfig(in_channels=3, size=32)).train()
    kept: dict[bool, dict[int, int]] = {}
    for fused in (False, True):
        set_fused(network, fused)
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(8, 3, 32, 32))
        kept[fused] = storages
    assert sum(kept[True].values()) < 0.7 * sum(kept[False].values())


def test_evaluation_is_spikingjellys_own() -> None:
    network = build(NetConfig()).eval()
    images = torch.randn(4, 1, 8, 8)
    plain = network(images)
    set_fused(network, True)
    assert torch.equal(network(images), plain)


@pytest.mark.parametrize(
    ("lif", "dtype"),
    [
        (neuron.LIFNode(surrogate_function=surrogate.Erf(), step_mode="m"), torch.float32),
        (neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="m"), torch.bfloat16),
    ],
)
def test_a_neuron_or_type_that_the_kernels_do_not_know_is_named(lif: neuron.LIFNode, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"the fused step .* take --engine plain"):
        fire(lif, torch.from_numpy(np.zeros((2, 1, 3), np.float32)).to(dtype))
