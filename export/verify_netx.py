"""Hold a .net file against the integer twin of its checkpoint: every spike and every logit, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from export import graph as g
from export import integer
from export.lower import lower
from export.netx_build import to_net
from export.quantize import Scales, prepare, rebuild
from export.verify import EXACT, NotVerified, Run, Verdict, compare
from hardware import lava, netx, netx_sim
from hardware.net import Net, NetxError
from train.checkpoint import Checkpoint


def verify_netx(
    checkpoint: Checkpoint,
    path: Path,
    images: np.ndarray,
    *,
    engine: Literal["lava", "reference"],
    name: str | None = None,
) -> Verdict:
    """Run the file on images [N, C, H, W] in [0, 1] and compare.

    The twin is made from the checkpoint under the scales that stand in the file.
    Raises NetxError (a ValueError) for a file that TSERve did not write from this checkpoint, LavaMissing (another)
    without Lava's venv, NotVerified where Lava breaks off.
    """
    net = netx.read(path)
    name = name or path.name
    twin, own = twin_of(checkpoint, net, name)
    pixels = integer.quantize_images(twin.input, images)
    if engine == "lava":
        engine_name = "Lava's fixed-point simulator"
        try:
            ran = lava.run(path, pixels, T=twin.T)
        except lava.LavaFailed as failure:
            raise NotVerified(f"{name}: {failure}") from failure
    else:
        ran, engine_name = netx_sim.simulate(net, pixels, T=twin.T), "the numpy model of netx"
    values = integer.run_integers(twin, pixels)
    lifs = [node for node in twin if isinstance(node, integer.IntegerLIF)]
    wanted = Run(spikes={n.name: values[n.name] for n in lifs}, logits=integer.logits(twin, values))
    got = Run(
        spikes={n.name: spikes for n, spikes in zip(lifs, ran.spikes[: len(lifs)], strict=True)},
        logits=step_logits(ran.v_out),
    )
    verdict = compare(wanted, got, EXACT, file=name, reference="the checkpoint's integer twin", engine=engine_name)
    changed = altered_layer(net, own)
    if verdict.ok and changed:
        # These images do not show it, others would.
        return replace(verdict, ok=False, first_difference={"layer": changed, "step": "none", "image": None})
    return verdict


def altered_layer(net: Net, own: Net) -> str | None:
    """The first layer of `net` whose parameters are not those of `own`, a net with layers of the same names."""
    for ours, theirs in zip(own.spiking, net.spiking, strict=True):
        settings = ("shape", "neuron", "stride", "padding", "dilation", "groups")
        same = all(getattr(ours, key, None) == getattr(theirs, key, None) for key in settings)
        if not (same and np.array_equal(ours.weight, theirs.weight) and np.array_equal(ours.bias, theirs.bias)):
            return ours.name
    return None


def step_logits(v_out: np.ndarray) -> np.ndarray:
    """The logits of each step [T, B, K] from the readout's membrane after it (64 times their sum so far)."""
    return np.diff(v_out, axis=0, prepend=0) / 2**integer.FRACTION_BITS


def twin_of(checkpoint: Checkpoint, net: Net, name: str) -> tuple[g.Graph, Net]:
    """The integer twin that `net` claims to be, and the net that is written from it."""
    scales = net.meta.get("scales")
    if scales is None:
        raise NetxError(f"{name}: TSERve did not write this file (no scales inside), so nothing says what it should do")
    if net.meta.get("checkpoint_sha256") != checkpoint.sha256:
        raise NetxError(f"{name}: it was exported from another checkpoint; export again with python -m export.to_loihi")
    twin = rebuild(prepare(lower(checkpoint)), Scales(input=scales["input"], layers=scales["layers"]))
    own = to_net(twin, Scales(**scales), labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    if [layer.name for layer in own.layers] != [layer.name for layer in net.layers]:
        raise NetxError(f"{name}: its layers are not the checkpoint's")
    return twin, own
