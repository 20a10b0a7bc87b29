"""The integer twin as a torch module whose weights learn: exact forward, straight-through on the way back.

The forward pass is the twin, bit for bit: weights rounded to 8 bits, membranes in 24, firing above an integer
threshold. On the way back rounding is the identity and a spike has the student's own surrogate.
"""

import dataclasses
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export import execute, integer
from export import graph as g
from export.prepare import synapses_of, v_decay
from export.scales import Scales, rounded, weight_scale
from export.unfold import folding
from hardware.net import Limits
from train.neurons import SURROGATES


class IntegerNetwork(nn.Module):
    """A prepared Graph under given scales with weights that learn; normalised images -> logits [T, B, K].

    original: the Graph before its pooling was folded, whose weights are the ones that learn: those that folding
    repeats stay equal.
    """

    def __init__(self, original: g.Graph, prepared: g.Graph, scales: Scales, *, surrogate: str) -> None:
        super().__init__()
        self.original, self.graph, self.scales = original, prepared, scales
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.unit: dict[str, float] = {}
        for node in (*prepared.lif_layers, prepared.output):
            current = scales.currents[node.name]
            for synapse in synapses_of(prepared, node):
                self.unit[synapse.name] = weight_scale(prepared, synapse, current, scales.input)
                if synapse.name in {known.name for known in original.synapses}:
                    weight = original[synapse.name].weight  # type: ignore[attr-defined]
                    self.weights[key(synapse.name)] = nn.Parameter(torch.from_numpy(weight).float())
            bias = torch.tensor(scales.biases[node.name]) / current
            self.biases[key(node.name)] = nn.Parameter(bias.float())
        self.surrogate = SURROGATES[surrogate]()
        self.largest_bias = Limits.load().bias

    @cached_property
    def pixels(self) -> integer.QuantizedInput:
        """How images become integers; those that come in are normalised already."""
        node = self.graph.input
        plain = dataclasses.replace(node, mean=np.zeros_like(node.mean), std=np.ones_like(node.std))
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(g.Input)}
        return integer.QuantizedInput(**fields, scale=self.scales.input)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [T, B, K] of normalised images [B, C, H, W] or frames [T, B, C, H, W], in the student's units."""
        x = torch.clamp(torch.round(images.double() * self.pixels.scale), -self.pixels.limit, self.pixels.limit)
        values = {self.graph.input.name: (x if self.graph.input.event else x[None]).float()}
        biased = {synapses_of(self.graph, node)[0].name: node.name for node in self.graph.lif_layers}
        biased[self.graph.output.name] = self.graph.output.name
        for node in self.graph.nodes[1:]:
            x = values[node.inputs[0]]
            if isinstance(node, g.Conv | g.Dense):
                values[node.name] = self.synapse(node, x, biased.get(node.name))
            elif isinstance(node, g.LIF):
                values[node.name] = self.neurons(node, x.expand(self.graph.T, *x.shape[1:]))
            else:
                values[node.name] = execute.step(node, [values[name] for name in node.inputs], self.graph.T)
        logits = values[self.graph.output.name] / self.scales.currents[self.graph.output.name]
        return logits.expand(self.graph.T, *logits.shape[1:])

    def synapse(self, node: g.Conv | g.Dense, x: Tensor, head: str | None) -> Tensor:
        """The layer's current in integers; `head` is the layer whose bias stands in it."""
        weight = self.integer_weight(node)
        bias = self.integer_bias(head) if head else None
        if x.is_cuda:  # float32 may be TF32 or Winograd there, which miss integers
            x, weight, bias = x.double(), weight.double(), bias.double() if bias is not None else None
        if isinstance(node, g.Dense):
            return F.linear(x, weight, bias).float()
        with torch.backends.nnpack.flags(enabled=False):  # it would multiply by fractions
            y = F.conv2d(x.flatten(0, 1), weight, bias, node.stride, node.padding, groups=node.groups)
        return y.unflatten(0, x.shape[:2]).float()

    def integer_weight(self, node: g.Conv | g.Dense) -> Tensor:
        """The weights that the chip gets."""
        if key(node.name) not in self.weights:  # a shortcut without weights
            device = next(self.parameters()).device
            return torch.from_numpy(rounded(node, self.unit[node.name])).float().to(device)
        weight = self.weights[key(node.name)]
        folded = repeated(weight, folding(self.original, self.graph, node)) if self.folds(node) else weight
        limit = integer.WEIGHT_LIMIT
        return rounding(torch.clamp(folded.double() * self.unit[node.name], -limit, limit)).float()

    def folds(self, node: g.Conv | g.Dense) -> bool:
        """Whether pooling before this layer has become part of its weights."""
        return bool(self.original[node.name].weight.shape != node.weight.shape)  # type: ignore[attr-defined]

    def integer_bias(self, head: str) -> Tensor:
        """The biases that the chip gets."""
        current = self.biases[key(head)].double() * self.scales.currents[head]
        return rounding(torch.clamp(current, -self.largest_bias, self.largest_bias)).float()

    def neurons(self, node: g.LIF, a: Tensor) -> Tensor:
        """Spikes for integer currents a [T, ...]; integer.lif with a gradient."""
        unit = self.scales.currents[node.name] * (node.tau if node.decay_input else 1.0)
        threshold, decay = self.scales.thresholds[node.name], v_decay(node.tau)
        dtype = integer.membrane_type(a, decay)
        v = torch.zeros_like(a[0], dtype=dtype)
        spikes = []
        for current in a:
            kept = truncation(v * (1 - decay / 2**integer.DECAY_BITS))
            v = torch.clamp(kept + current.to(dtype) * 2**integer.FRACTION_BITS, -integer.V_LIMIT, integer.V_LIMIT)
            # One unit of 2^-6 above the threshold is the first value that fires.
            over = (v - threshold * 2**integer.FRACTION_BITS - 1) / (2**integer.FRACTION_BITS * unit)
            spikes.append(self.surrogate(over.float()))
            v = v * (1 - spikes[-1].detach())
        return torch.stack(spikes)

    def scales_now(self) -> Scales:
        """The scales with the biases as learnt."""
        biases = {
            head: self.integer_bias(head).detach().long().tolist()
            for head in (*(node.name for node in self.graph.lif_layers), self.graph.output.name)
        }
        return dataclasses.replace(self.scales, biases=biases)


def key(name: str) -> str:
    """A layer's name as torch wants a parameter's: without dots."""
    return name.replace(".", "/")


def rounding(x: Tensor) -> Tensor:
    """The nearest integer; on the way back the identity."""
    return x + (torch.round(x) - x).detach()


def truncation(x: Tensor) -> Tensor:
    """The integer towards zero; on the way back the identity."""
    return x + (torch.trunc(x) - x).detach()


def repeated(weight: Tensor, fold: tuple[tuple[int, int, int], int, int]) -> Tensor:
    """Weights [N, ...] after pooling over kh x kw has become part of them (export.fold)."""
    shape, kh, kw = fold
    spread = weight.reshape(len(weight), *shape).repeat_interleave(kh, 2).repeat_interleave(kw, 3) / (kh * kw)
    return spread if weight.ndim == 4 else spread.reshape(len(weight), -1)
