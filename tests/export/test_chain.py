"""How the parts of a layer share one window, and what one chain of layers cannot hold: refused by layer."""

import dataclasses
from collections.abc import Callable

import pytest
from chip_graphs import Smooth, a_recipe, begin, build, classified, flat, naive_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from export import graph as g
from export.netx_build import to_net
from export.prepare import NotForLoihi, prepare
from export.scales import rebuild
from export.sequence import Window, common_window, sequence


def brute_positions(window: Window, size: int, out: int, axis: int) -> list[set[int]]:
    """For every output the positions of the map that a window reads."""
    k, s, p = window.kernel[axis], window.stride[axis], window.padding[axis]
    return [{i * s - p + u for u in range(k)} & set(range(size)) for i in range(out)]


WINDOWS = st.tuples(st.integers(1, 4), st.integers(0, 2))


@settings(max_examples=200, deadline=None)
@given(shapes=st.lists(WINDOWS, min_size=1, max_size=3), stride=st.integers(1, 3), size=st.integers(1, 9))
def test_a_common_window_covers_every_window_at_every_position(
    shapes: list[tuple[int, int]], stride: int, size: int
) -> None:
    windows = [Window(kernel=(k, k), stride=(stride, stride), padding=(p, p)) for k, p in shapes]
    sizes = {(size + 2 * p - k) // stride + 1 if size + 2 * p >= k else 0 for k, p in shapes}
    if len(sizes) != 1 or 0 in sizes:
        return
    (out,) = sizes
    common = common_window(windows, (size, size), (out, out))
    if common is None:
        return
    k, p = common.kernel[0], common.padding[0]
    assert (size + 2 * p - k) // stride + 1 == out
    covered = brute_positions(common, size, out, 0)
    for window in windows:
        assert all(own <= all_of for own, all_of in zip(brute_positions(window, size, out, 0), covered, strict=True))


def two_strides() -> g.Graph:
    """A shortcut with stride 2 past a convolution with stride 3."""
    m = begin(side=(4, 4))
    m.conv("conv1", 4, stride=(3, 3))
    m.spike("lif1")
    return shortcut(m, kernel=(1, 1), stride=(2, 2))


def cropped() -> g.Graph:
    """A shortcut that would need the last column, which the convolution beside the relays does not reach."""
    m = begin(side=(5, 5))
    m.conv("conv1", 4, kernel=(2, 2), padding=(0, 0))
    m.spike("lif1")
    m.conv("conv2", 4, kernel=(1, 1), padding=(0, 0), stride=(1, 1))
    m.conv("side", 4, kernel=(2, 2), padding=(0, 0), source="lif")
    m.add("sum", "conv2", "side")
    m.spike("lif2")
    return classified(m)


def cropped_by_half() -> g.Graph:
    m = begin(side=(4, 4))
    m.conv("conv1", 4, kernel=(2, 2), padding=(0, 0))
    m.spike("lif1")
    m.conv("conv2", 4, kernel=(2, 2), padding=(0, 0))
    m.conv("side", 4, kernel=(1, 1), padding=(0, 0), stride=(2, 2), source="lif")
    m.add("sum", "conv2", "side")
    m.spike("lif2")
    return classified(m)


def cropped_and_padded_again() -> g.Graph:
    """A shortcut without weights of 5 columns, past a layer of 4."""
    m = begin(side=(5, 5))
    m.conv("conv1", 4, kernel=(2, 2), padding=(0, 0))
    m.spike("lif1")
    m.conv("conv2", 4, kernel=(2, 2), padding=(1, 1))
    m.add("sum", "conv2", "lif")
    m.spike("lif2")
    return classified(m)


def shortcut(m: Smooth, *, kernel: tuple[int, int], stride: tuple[int, int]) -> g.Graph:
    m.conv("conv2", 4)
    m.conv("side", 4, kernel=kernel, stride=stride, padding=(0, 0), source="lif")
    m.add("sum", "conv2", "side")
    m.spike("lif2")
    return classified(m)


def wide_shortcut_past_a_stride() -> g.Graph:
    m = begin(side=(4, 4))
    m.conv("conv1", 4, stride=(2, 2))
    m.spike("lif1")
    return shortcut(m, kernel=(2, 2), stride=(2, 2))


def dense_past_a_stride() -> g.Graph:
    m = begin(side=(4, 4))
    m.conv("conv", 4, stride=(2, 2))
    m.spike("lif1")
    flat(m, "lif")
    m.dense("left", 5)
    flat(m, "lif1")
    m.dense("right", 5)
    m.add("sum", "left", "right")
    m.spike("lif2")
    return classified(m)


def two_strides_in_one_layer() -> g.Graph:
    m = begin(side=(4, 4))
    m.conv("left", 4, kernel=(3, 3), stride=(2, 2))
    m.conv("right", 4, kernel=(3, 3), padding=(0, 0), source="lif")
    m.add("sum", "left", "right")
    m.spike("lif2")
    return classified(m)


def two_sizes_in_one_layer() -> g.Graph:
    m = begin(side=(4, 4))
    m.conv("left", 4, stride=(2, 2))
    m.spike("lif1")
    flat(m, "lif1")
    m.dense("from_left", 5)
    m.conv("right", 4, source="lif")
    m.spike("lif2")
    flat(m, "lif2")
    m.dense("from_right", 5)
    m.add("sum", "from_left", "from_right")
    m.spike("lif3")
    return classified(m)


def grown_beyond_its_relays() -> g.Graph:
    """A map that grows from 4 to 6: no position of a relay there stands for one of the source's."""
    m = begin(side=(4, 4))
    m.conv("conv1", 4, kernel=(1, 1), padding=(1, 1))
    m.spike("lif1")
    m.conv("conv2", 4)
    m.conv("side", 4, kernel=(1, 1), padding=(1, 1), source="lif")
    m.add("sum", "conv2", "side")
    m.spike("lif2")
    return classified(m)


def late_image() -> g.Graph:
    m = begin()
    m.conv("conv", 4)
    m.conv("side", 4, source="image")
    m.add("sum", "conv", "side")
    m.spike("lif2")
    return classified(m)


def two_time_constants() -> g.Graph:
    graph = build(a_recipe("sew_projected"))
    lif = graph["block0.shortcut.lif"]
    assert isinstance(lif, g.LIF)
    return graph.replace(dataclasses.replace(lif, tau=2.5))


def two_thresholds() -> g.Graph:
    graph = build(a_recipe("sew_projected"))
    lif = graph["block0.shortcut.lif"]
    assert isinstance(lif, g.LIF)
    return graph.replace(dataclasses.replace(lif, v_threshold=0.5))


def unread() -> g.Graph:
    m = begin()
    m.conv("aside", 4)
    m.spike("lif1")
    m.conv("conv", 4, source="lif")
    m.spike("lif2")
    m.conv("conv2", 4)
    m.spike("lif3")
    return classified(m)


DROPPED = r"lif2: reads positions of lif that a stride on the way has dropped; a chain of layers cannot hold that"
REFUSED: list[tuple[Callable[[], g.Graph], str]] = [
    (two_strides, DROPPED),
    (cropped, DROPPED),
    (cropped_and_padded_again, DROPPED),
    (cropped_by_half, r"lif2: (reads positions of lif that a stride|one layer of the \.net would have the strides)"),
    (wide_shortcut_past_a_stride, DROPPED),
    (dense_past_a_stride, DROPPED),
    (two_strides_in_one_layer, r"lif2: one layer of the \.net would have the strides \[\(1, 1\), \(2, 2\)\]"),
    (two_sizes_in_one_layer, r"lif2: has maps of \(4, 4\), its layer of the \.net has \(2, 2\)"),
    (grown_beyond_its_relays, r"lif1: its layer of the \.net has no kernel that fits all of its parts"),
    (late_image, r"lif2: only the first layer of a \.net can read the image; add a LIF on the way"),
    (
        two_time_constants,
        r"block0\.shortcut\.lif: shares a layer of the \.net with block0\.lif1, but not its time constant "
        r"\(2\.5 and 2\); train with --net\.neuron lif",
    ),
    (unread, r"lif1: no layer reads its spikes; remove it"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_what_a_chain_of_layers_cannot_hold_is_refused_by_layer(made: Callable[[], g.Graph], message: str) -> None:
    prepared = prepare(made())
    with pytest.raises(NotForLoihi, match=message):
        sequence(prepared)


def test_two_thresholds_in_one_layer_are_refused() -> None:
    prepared = prepare(two_thresholds())
    scales = naive_scales(prepared)
    with pytest.raises(NotForLoihi, match=r"block0\.lif1, block0\.shortcut\.lif: share a layer .* differ in threshold"):
        to_net(rebuild(prepared, scales), scales, labels=["a"], checkpoint_sha256="0")
