"""Counts are exact: they equal brute force, SpikingJelly's counter and what the ONNX model reports."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_graphs import Maker, dyadic_images, every_node
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

from export import graph as g
from export import reference
from export.counts import Counts, SynapseCounts, count, fan_map, sops_per_tap
from export.onnx_graph import build_model


def synapse(counts: Counts, name: str) -> SynapseCounts:
    return next(layer for layer in counts.synapses if layer.name == name)


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(3, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
)
def test_fan_map_counts_the_windows_that_cover_each_pixel(size: int, kernel: int, stride: int, padding: int) -> None:
    assume(size + 2 * padding >= kernel)
    m = Maker(rng=np.random.default_rng(0), lif={})
    m.image(1, size, 5)
    m.conv("conv", 1, kernel=(kernel, 2), stride=(stride, 1), padding=(padding, 1))
    conv = m.nodes[-1]
    x = torch.zeros(1, 1, size, 5, requires_grad=True)
    ones = torch.ones(1, 1, kernel, 2)
    torch.nn.functional.conv2d(x, ones, stride=(stride, 1), padding=(padding, 1)).sum().backward()
    np.testing.assert_array_equal(fan_map(conv, (1, size, 5)), x.grad[0, 0])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2]),
    mean=st.booleans(),
)
def test_sops_are_what_convolving_events_with_ones_gives(
    seed: int, stride: tuple[int, int], padding: tuple[int, int], groups: int, mean: bool
) -> None:
    graph = every_node(seed=seed, stride=stride, padding=padding, groups=groups, mean=mean, T=3)
    images = dyadic_images(graph, batch=3, seed=seed)
    counts = count(graph, images, batch_size=2)
    values = reference.run(graph, images)
    for node in graph.synapses:
        got, x = synapse(counts, node.name), values[node.inputs[0]]
        ones = np.ones_like(node.weight)
        if isinstance(node, g.Conv):
            by_output = reference.conv2d(
                (x != 0).astype(float), ones, stride=node.stride, padding=node.padding, groups=node.groups
            )
            full = reference.conv2d(
                np.ones(x.shape[2:]), ones, stride=node.stride, padding=node.padding, groups=node.groups
            )
        else:
            by_output, full = (x != 0) @ ones.T, ones
        assert got.dense_macs == full.sum()
        expected = by_output.reshape(*by_output.shape[:2], -1).sum(2) if len(x) == graph.T else np.zeros((3, 3))
        np.testing.assert_array_equal(got.sops, expected)
        np.testing.assert_array_equal(got.taps * sops_per_tap(node), expected)
        present = np.count_nonzero(x.reshape(*x.shape[:2], -1), axis=2) if len(x) == graph.T else np.zeros((3, 3))
        np.testing.assert_array_equal(got.nonzero, present)
        assert got.static == (node.name == "stem.conv")
        graded = {"stem.conv", "spikes.conv", "avg.conv"} | ({"classifier"} if mean else set())
        assert got.binary == (node.name not in graded)
    for neurons in counts.neurons:
        np.testing.assert_array_equal(neurons.spikes, values[neurons.name].reshape(3, 3, -1).sum(2))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_counts_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    graph = every_node(T=2)
    images = dyadic_images(graph, batch=7)
    whole, parts = count(graph, images, batch_size=7), count(graph, images, batch_size=batch_size)
    for a, b in zip(whole.synapses, parts.synapses, strict=True):
        np.testing.assert_array_equal(a.sops, b.sops)
        np.testing.assert_array_equal(a.nonzero, b.nonzero)
        np.testing.assert_array_equal(a.taps, b.taps)


def test_unpriced_work_is_what_the_shapes_say() -> None:
    graph = every_node(T=3)
    counts = count(graph, dyadic_images(graph, batch=1))
    sizes = {node.name: int(np.prod(node.shape)) for node in graph}
    assert counts.neuron_updates == 3 * sum(n for name, n in sizes.items() if "lif" in name)
    assert counts.bias_additions == sizes["stem.conv"] + 3 * sum(
        n for name, n in sizes.items() if name.split(".")[-1].startswith(("conv", "classifier")) and name != "stem.conv"
    )
    assert counts.pooled_values == 3 * (sizes["spikes.lif"] + sizes["avg.lif"])
    assert counts.residual_additions == 3 * (sizes["hold.add"] + sizes["block.add"] + sizes["spikes.add"])


@pytest.mark.parametrize("batch_size", [2, 100])
def test_recordings_of_events_are_counted_step_by_step(batch_size: int) -> None:
    """Frames that repeat an image do what the image does, and the first layers, static there, work at every step."""
    still = every_node(T=3)
    moving = still.replace(dataclasses.replace(still.input, event=True))
    images = dyadic_images(still, batch=3)
    frames = np.stack([images] * 3)
    of_image, of_frames = count(still, images), count(moving, frames, batch_size=batch_size)
    assert of_frames.num_images == 3
    for a, b in zip(of_image.neurons, of_frames.neurons, strict=True):
        np.testing.assert_array_equal(a.spikes, b.spikes)
    for a, b in zip(of_image.synapses, of_frames.synapses, strict=True):
        assert (b.static, b.binary) == (False, a.binary)
        if not a.static:
            np.testing.assert_array_equal(a.sops, b.sops)
    stem = moving["stem.conv"]
    events = (reference.run(moving, frames)["image"] != 0).astype(float)
    landed = reference.conv2d(events, np.ones_like(stem.weight), stride=stem.stride, padding=stem.padding)
    np.testing.assert_array_equal(synapse(of_frames, "stem.conv").sops, landed.sum(axis=(2, 3, 4)))
    assert of_frames.bias_additions - of_image.bias_additions == 2 * np.prod(stem.shape)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        count(every_node(), np.zeros((0, 2, 10, 8), np.float32))


def test_onnx_taps_and_nonzero_inputs_are_the_counted_ones() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = every_node()
    images = dyadic_images(graph, batch=3)
    model = build_model(graph, labels="abcde", checkpoint_sha256="")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    taps, nonzero = session.run(["taps", "nonzero"], {"image": images})
    spiking = [layer for layer in count(graph, images).synapses if not layer.static]
    for m, layer_counts in enumerate(spiking):
        np.testing.assert_array_equal(taps[..., m], layer_counts.taps)
        np.testing.assert_array_equal(taps[..., m] * sops_per_tap(graph[layer_counts.name]), layer_counts.sops)
        np.testing.assert_array_equal(nonzero[..., m], layer_counts.nonzero)


def plain_graph(T: int) -> g.Graph:
    """conv-LIF-conv/2-LIF-AvgPool-conv-LIF-Flatten-Dense."""
    lif = {"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.5}
    m = Maker(rng=np.random.default_rng(3), lif=lif)
    m.image(3, 8, 8)
    m.conv("0", 8)
    m.spike("1")
    m.conv("2", 16, stride=(2, 2))
    m.spike("3")
    m.pool(g.AvgPool, "4", (2, 2))
    m.conv("5", 16)
    m.spike("6")
    m.features(g.Flatten, "7")
    m.dense("8", 10)
    return g.Graph(nodes=tuple(m.nodes), T=T)


def in_spikingjelly(graph: g.Graph) -> torch.nn.Sequential:
    """The same network of SpikingJelly's layers, with the Graph's weights."""
    network = torch.nn.Sequential()
    for node in graph.nodes[1:]:
        match node:
            case g.Conv():
                module = layer.Conv2d(*node.weight.shape[1::-1], node.weight.shape[2:], node.stride, node.padding)
            case g.Dense():
                module = layer.Linear(*node.weight.shape[::-1])
            case g.AvgPool():
                module = layer.AvgPool2d(node.kernel)
            case g.Flatten():
                module = layer.Flatten()
            case g.LIF():
                module = neuron.LIFNode(
                    tau=node.tau, decay_input=node.decay_input, v_threshold=node.v_threshold, v_reset=node.v_reset
                )
        if isinstance(node, g.Conv | g.Dense):
            module.weight.data = torch.from_numpy(node.weight).float()
            module.bias.data = torch.from_numpy(node.bias).float()
        network.add_module(node.name, module)
    functional.set_step_mode(network, "m")
    return network


def synops_of(network: torch.nn.Module, x: torch.Tensor) -> dict[str, int]:
    """SpikingJelly's count of synaptic operations by module path."""
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        network(x)
    return {name: sum(by_op.values()) for name, by_op in counter.get_counts().items()}


def test_spikingjelly_counts_the_same_synaptic_operations() -> None:
    graph = plain_graph(T=4)
    images = dyadic_images(graph, batch=2)
    normalised = torch.from_numpy(reference.step(graph.input, [images], 4))
    theirs = synops_of(in_spikingjelly(graph), normalised.expand(4, *normalised.shape))
    counts = count(graph, images)
    for name in ("2", "8"):
        assert theirs[f"Sequential.{name}"] == synapse(counts, name).sops.sum() > 0
    # It gives a graded input no synaptic operations; we count those of its nonzero values.
    assert theirs["Sequential.0"] == synapse(counts, "0").sops.sum() == 0
    assert 0 == theirs["Sequential.5"] < synapse(counts, "5").sops.sum()


def test_dense_macs_are_spikingjellys_operations_where_every_input_spikes() -> None:
    graph = plain_graph(T=1)
    counts = count(graph, dyadic_images(graph, batch=1))
    for name, module in in_spikingjelly(graph).named_children():
        if name in ("0", "2", "5", "8"):
            ones = torch.ones(1, 1, *graph[graph[name].inputs[0]].shape)
            assert synops_of(module, ones)[type(module).__name__] == synapse(counts, name).dense_macs
