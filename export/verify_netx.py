"""Hold a .net file against the integer twin of its checkpoint: every spike and every logit, bit for bit."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from export import execute, integer
from export import graph as g
from export.lower import lower
from export.netx_build import FORMAT, to_net
from export.prepare import prepare
from export.scales import Scales, recorded
from export.verify import EXACT, NotVerified, Run, Verdict, compare
from hardware import lava, netx, netx_sim
from hardware.net import Net, NetxError
from train.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class Verified:
    """What a comparison found, and what the file did: `sent`, the integers of the images, and a run of all layers."""

    verdict: Verdict
    sent: np.ndarray
    run: netx_sim.Run
    logits: np.ndarray
    """[T, N, K], integers."""


def verify_netx(
    checkpoint: Checkpoint,
    path: Path,
    images: np.ndarray,
    *,
    engine: Literal["lava", "reference"],
    name: str | None = None,
) -> Verified:
    """Run the file on images [N, C, H, W] in [0, 1] (or frames [T, N, C, H, W]) and compare every step of every LIF.

    The twin is made from the checkpoint under the scales that stand in the file.
    Raises NetxError (a ValueError) for a file that TSERve did not write from this checkpoint, LavaMissing (another)
    without Lava's venv, NotVerified where Lava breaks off.
    """
    net = netx.read(path)
    name = name or path.name
    twin, _, own = twin_of(checkpoint, net, name)
    pixels = integer.quantize_images(twin.input, images)
    if engine == "lava":
        engine_name = "Lava's fixed-point simulator"
        try:
            ran = lava.run(path, pixels, T=twin.T)
        except lava.LavaFailed as failure:
            raise NotVerified(f"{name}: {failure}") from failure
    else:
        ran, engine_name = netx_sim.simulate(net, pixels, T=twin.T), "the numpy model of netx"
    values = execute.run_integers(twin, pixels)
    places = own.meta["lif_layers"]
    wanted = Run(spikes={lif: values[lif] for lif in places}, logits=execute.logits(twin, values))
    got = Run(
        spikes={lif: ran.spikes[layer][:, :, start:stop] for lif, (layer, start, stop) in places.items()},
        logits=step_logits(ran.v_out),
    )
    verdict = compare(wanted, got, EXACT, file=name, reference="the checkpoint's integer twin", engine=engine_name)
    changed = altered_layer(net, own)
    if verdict.ok and changed:
        # These images do not show it, others would.
        verdict = replace(verdict, ok=False, first_difference={"layer": changed, "step": "none", "image": None})
    return Verified(verdict=verdict, sent=pixels, run=ran, logits=got.logits)


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


def twin_with_scales(checkpoint: Checkpoint, net: Net, name: str) -> tuple[g.Graph, Scales]:
    """The integer twin whose integers stand in `net`, and its scales.

    Raises ValueError where the file is not of this checkpoint, or where one of its layers was changed afterwards.
    """
    twin, scales, own = twin_of(checkpoint, net, name)
    if layer := altered_layer(net, own):
        raise NetxError(f"{name}: the integers of layer {layer} are not those that its scales give; export it again")
    return twin, scales


def twin_of(checkpoint: Checkpoint, net: Net, name: str) -> tuple[g.Graph, Scales, Net]:
    """The integer twin that `net` claims to be, its scales, and the net that is written from them.

    Raises ValueError where what the file says of itself is not so. Its integers are not looked at.
    """
    again = "export again with python -m export.to_loihi"
    if net.meta.get("scales") is None:
        raise NetxError(f"{name}: TSERve did not write this file (no scales inside), so nothing says what it should do")
    if net.meta.get("checkpoint_sha256") != checkpoint.sha256:
        raise NetxError(f"{name}: it was exported from another checkpoint; {again}")
    if net.meta.get("format") != FORMAT:
        raise NetxError(f"{name}: format {net.meta.get('format')!r}, this version reads {FORMAT}; {again}")
    twin, scales = recorded(prepare(lower(checkpoint)), net.meta["scales"], name)
    own = to_net(twin, scales, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    if [layer.name for layer in own.layers] != [layer.name for layer in net.layers]:
        raise NetxError(f"{name}: its layers are not the checkpoint's")
    if wrong := [key for key, value in own.meta.items() if net.meta.get(key) != json.loads(json.dumps(value))]:
        raise NetxError(f"{name}: {', '.join(wrong)} in it are not the checkpoint's; {again}")
    return twin, scales, own
