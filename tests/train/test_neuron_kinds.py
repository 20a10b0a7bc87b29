"""A student of any kind of neuron starts out alive and learns."""

import pytest
import torch
from torch import nn

from train.config import DataConfig, NetConfig
from train.data import load
from train.networks import build, firing_rates, lif_layers
from train.neurons import IF, Norm, not_fusable, set_fused


@pytest.mark.parametrize("name", ["vgg_small", "resnet20", "resnet19_tet", "sew_resnet18"])
def test_every_layer_of_a_fresh_student_of_if_neurons_fires(name: str) -> None:
    torch.manual_seed(0)
    network = build(NetConfig(name=name, width=0.25, neuron="if", v_threshold=0.5))
    images = load(DataConfig()).train.images[:64].float() / 255
    with torch.no_grad(), firing_rates(network) as rates:
        network((images - 0.3) / 0.4)
    assert list(rates) == list(lif_layers(network))
    assert all(0.02 < rate.mean() < 0.6 for rate in rates.values()), {k: v.mean().item() for k, v in rates.items()}


def test_the_drive_of_if_neurons_is_the_one_that_fires_at_once() -> None:
    network = build(NetConfig(width=0.25, neuron="if", v_threshold=0.75))
    weights = torch.cat([m.weight for m in network.modules() if isinstance(m, Norm)])
    assert weights.unique().tolist() == [0.75]
    layer = network.get_submodule("body.act1")
    assert layer(torch.full((1, 1), 0.75)).item() == 1
    layer.reset()
    assert layer(torch.full((1, 1), 0.7499)).item() == 0


@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
def test_a_student_of_every_neuron_learns_the_digits_in_a_few_steps(kind: str) -> None:
    torch.manual_seed(0)
    data = load(DataConfig())
    network = build(NetConfig(width=0.5, T=2, neuron=kind)).train()
    set_fused(network, True)
    x = (data.train.images.float() / 255 - data.mean[0]) / data.std[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        rows = slice(step % 10 * 128, (step % 10 + 1) * 128)
        loss = nn.functional.cross_entropy(network(x[rows]).mean(0), data.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        test = (data.test.images.float() / 255 - data.mean[0]) / data.std[0]
        found = network.eval()(test).mean(0).argmax(1)
    assert (found == data.test.labels).float().mean() > 0.85


def test_if_neurons_are_left_to_spikingjelly_by_the_fused_step() -> None:
    network = build(NetConfig(neuron="if", width=0.25))
    set_fused(network, True)
    assert not_fusable(network) == "neurons of the kind IF"
    assert {type(layer) for layer in lif_layers(network).values()} == {IF}
    assert not any(module.fused for module in network.modules() if isinstance(module, Norm))
