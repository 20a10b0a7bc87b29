"""Counts are exact: they equal brute force, the reference's values and what the ONNX model reports.

Other counters are oracles in test_energy_oracles.py.
"""

import dataclasses
import io
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from chip_graphs import BLOCKS, Recipe, build, images_of, recipes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_graphs import Maker, dyadic_images, every_node

from export import graph as g
from export import observe, reference
from export.conventions import CONVENTIONS
from export.conventions_terms import evaluate
from export.counts import Counts, SynapseCounts, count, count_batches, fan_map, sops_per_tap, spike_driven
from export.lower import lower_network
from export.onnx_graph import build_model
from hardware import chip
from train import networks
from train.checkpoint import Preprocess
from train.config import NetConfig


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


def by_reference(graph: g.Graph, images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """What the values of `export.reference` say of every event, in plain numpy: the definition of the counts."""
    values = reference.run(graph, images)
    found: dict[str, dict[str, np.ndarray]] = {"nonzero": {}, "taps": {}, "spikes": {}, "active": {}}
    for node in spike_driven(graph):
        events = values[node.inputs[0]] != 0
        per_position = events.sum(axis=2)  # [T, N, H, W] or [T, N]
        fan = fan_map(node, graph[node.inputs[0]].shape)
        found["nonzero"][node.name] = events.reshape(*events.shape[:2], -1).sum(2)
        found["taps"][node.name] = (per_position.reshape(*events.shape[:2], -1) * fan.ravel()).sum(2)
    for lif in graph.lif_layers:
        spikes, x = values[lif.name], values[lif.inputs[0]]
        found["spikes"][lif.name] = spikes.reshape(*spikes.shape[:2], -1).sum(2).astype(np.int64)
        found["active"][lif.name] = active_updates(lif, np.broadcast_to(x, spikes.shape), spikes)
    return found


def active_updates(lif: g.LIF, x: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Neurons [T, N] whose membrane is not before a spike what it was after the last step, or that fire."""
    v, active = np.full_like(x[0], lif.v_reset), []
    for current, fired in zip(x, spikes, strict=True):
        if lif.decay_input:
            h = v + (current - (v - lif.v_reset)) / lif.tau
        else:
            h = v - (v - lif.v_reset) / lif.tau + current
        active.append(((h != v) | (fired > 0)).reshape(len(v), -1).sum(1))
        v = np.where(fired > 0, np.asarray(lif.v_reset, x.dtype), h)
    return np.stack(active)


def assert_same(seen: Any, wanted: dict[str, dict[str, np.ndarray]]) -> None:
    for key, layers in wanted.items():
        assert getattr(seen, key).keys() == layers.keys()
        for name, values in layers.items():
            np.testing.assert_array_equal(getattr(seen, key)[name], values, err_msg=f"{key} of {name}")


@settings(max_examples=60, deadline=None)
@given(recipe=recipes(tuple(BLOCKS)))
def test_what_is_observed_in_torch_is_what_the_reference_says(recipe: Recipe) -> None:
    graph = build(recipe)
    images = images_of(graph, 3).astype(np.float32)
    (seen,) = observe.observe(graph, [images])
    assert_same(seen, by_reference(graph, images))


@pytest.mark.parametrize("options", [{"tau": 3.0, "decay_input": False}, {"v_reset": 0.25}, {"v_threshold": -0.5}])
@pytest.mark.parametrize("event", [False, True])
def test_every_kind_of_neuron_is_observed_as_in_the_reference(options: dict[str, Any], event: bool) -> None:
    graph = every_node(T=3, **options)
    images = dyadic_images(graph, batch=3).astype(np.float64)
    if event:
        graph = graph.replace(dataclasses.replace(graph.input, event=True))
        images = np.stack([images, np.roll(images, 1, axis=0), images * 0.5])
    (seen,) = observe.observe(graph, [images])
    assert_same(seen, by_reference(graph, images))


@pytest.mark.parametrize("name", ["vgg_small", "resnet20", "sew_resnet18"])
def test_a_network_is_counted_in_float64_as_by_the_reference(name: str) -> None:
    """Its weights are any numbers: rounding differs between torch and numpy, and in float64 flips no spike."""
    torch.manual_seed(0)
    network = networks.build(NetConfig(name=name, width=0.25, T=3, size=32, in_channels=3)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.1, 0.5)
    graph = lower_network(network, Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, size=32))
    images = np.random.default_rng(0).random((2, 3, 32, 32))
    (seen,) = observe.observe(graph, [images])
    assert_same(seen, by_reference(graph, images))
    assert min(spikes.sum() for spikes in seen.spikes.values()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_as_a_cpu_does() -> None:
    graph = every_node(T=3)
    images = dyadic_images(graph, batch=5)
    assert_counts_equal(count(graph, images, device="cuda"), count(graph, images))


def assert_counts_equal(a: Counts, b: Counts) -> None:
    for parts in (zip(a.synapses, b.synapses, strict=True), zip(a.neurons, b.neurons, strict=True)):
        for one, other in parts:
            for key, value in vars(one).items():
                np.testing.assert_array_equal(value, getattr(other, key), err_msg=f"{key} of {one.name}")
    for field in dataclasses.fields(Counts):
        if field.name not in ("synapses", "neurons"):
            assert getattr(a, field.name) == getattr(b, field.name)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_counts_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    graph = every_node(T=2)
    images = dyadic_images(graph, batch=7)
    assert_counts_equal(count(graph, images, batch_size=7), count(graph, images, batch_size=batch_size))


def test_batches_are_counted_as_they_come_and_let_go() -> None:
    graph = every_node(T=2)
    images = dyadic_images(graph, batch=8)
    given_out: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[np.ndarray]:
        for start in range(0, 8, 2):
            assert not any(batch() is not None for batch in given_out[:-1])  # but for the last one, all are gone
            batch = images[start : start + 2].copy()
            given_out.append(weakref.ref(batch))
            yield batch
            del batch

    assert_counts_equal(count_batches(graph, stream()), count(graph, images))
    assert len(given_out) == 4


def test_counting_shows_how_far_it_is_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = every_node(T=2)
    images = dyadic_images(graph, batch=3)
    for terminal in (True, False):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stderr", stderr)
        count(graph, images, batch_size=1, progress=True)
        assert ("Counting" in stderr.getvalue() and "/3 " in stderr.getvalue()) == terminal


def test_a_neuron_is_idle_where_its_membrane_stays_as_it_was() -> None:
    """IF neurons, T = 3: currents of 0, 1/2 and 2 a step; the second fires at its second step, the third always."""
    lif = {"tau": float("inf"), "decay_input": False, "v_reset": 0.0, "v_threshold": 1.0}
    m = Maker(rng=np.random.default_rng(0), lif=lif)
    m.image(1, 1, 3)
    m.nodes[0] = dataclasses.replace(m.nodes[0], mean=np.zeros(1), std=np.full(1, 0.5))
    m.conv("conv", 1, kernel=(1, 1), padding=(0, 0))
    m.nodes[1] = dataclasses.replace(m.nodes[1], weight=np.ones((1, 1, 1, 1)), bias=np.zeros(1))
    m.spike("lif")
    counts = count(g.Graph(nodes=tuple(m.nodes), T=3), np.array([[[[0.0, 0.25, 1.0]]]], np.float32))
    (neurons,) = counts.neurons
    assert neurons.active.tolist() == [[2], [2], [2]]
    assert neurons.idle.tolist() == [[1], [1], [1]]
    assert neurons.spikes.tolist() == [[1], [2], [1]]
    assert counts.neuron_updates == (neurons.active + neurons.idle).sum()


def test_memory_accesses_are_those_that_memory_aware_prices() -> None:
    graph = every_node(T=3)
    counts = count(graph, dyadic_images(graph, batch=2))
    priced = {x.name: x for x in CONVENTIONS["memory_aware"].charges(graph, None, chip.load("cmos45nm"))}
    for layer in counts.synapses:
        if not layer.static:
            ours = layer.input_reads + layer.weight_reads + layer.membrane_accesses + layer.outputs  # and the biases
            np.testing.assert_array_equal(evaluate(priced[layer.name], counts).accesses, ours)
    for neurons in counts.neurons:
        extra = 0 if neurons.name in ("block.lif1", "spikes.lif", "avg.lif") else neurons.neurons  # reads its current
        ours = neurons.membrane_accesses + neurons.spike_writes + extra
        np.testing.assert_array_equal(evaluate(priced[neurons.name], counts).accesses, ours)


def test_a_layer_too_large_to_be_summed_exactly_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = every_node(T=2)
    monkeypatch.setitem(observe.WHOLE, torch.float32, 4 * 10 * 8 - 1)
    with pytest.raises(
        ValueError, match=r"^stem.conv: a layer of 320 values; events are counted exactly in layers of up to 319"
    ):
        count(graph, dyadic_images(graph, batch=1))


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
    for batches in ([], [np.zeros((0, 2, 10, 8), np.float32)]):
        with pytest.raises(ValueError, match="at least one image"):
            count_batches(every_node(), batches)
    with pytest.raises(ValueError, match=r"images must be \[B, 2, 10, 8\], got \[3, 2, 8, 8\]"):
        count_batches(every_node(), [np.zeros((3, 2, 8, 8), np.float32)])


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
