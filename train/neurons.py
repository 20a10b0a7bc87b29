"""Spiking neurons and the two joints between an image and time.

Inside a student, values travel as [T, B, ...], or as [1, B, ...] while they are the same at every step.
"""

import operator
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, fx, nn

from train.config import NetConfig
from train.fused import Drive, fire, normalise
from train.parallel import processes, synchronised_norm


SURROGATES = {
    "atan": lambda: surrogate.ATan(alpha=2.0),
    "sigmoid": lambda: surrogate.Sigmoid(alpha=4.0),
    "triangle": lambda: surrogate.PiecewiseQuadratic(alpha=1.0),  # max(0, 1 - |x|)
    "rect": lambda: surrogate.Rect(alpha=1.0),  # 1 where |x| < 0.5
}


class Norm(layer.BatchNorm2d):
    """SpikingJelly's BatchNorm2d that can leave the normalising to the LIF after it (`fused`, see train/fused.py),
    and can take its statistics over the batches of all processes (`sync`)."""

    fused = False
    into_sum = False
    """Whether the result is a summand of a block's output."""
    sync = False

    def forward(self, x: Tensor) -> Tensor | Drive:
        sync = self.sync and processes() > 1
        if self.training and self.fused:
            return normalise(self, x, sync=sync)
        if self.training and sync:
            return synchronised_norm(self, x, axis=2 if self.step_mode == "m" else 1)
        return super().forward(x)


class _Neuron(neuron.BaseNode):
    """SpikingJelly's neurons with membranes in float32 under mixed precision."""

    stateless = False
    """Whether a training step starts at rest by itself and keeps no membranes: under torch.compile a kept state is one
    more result that is written to memory, and resetting it breaks the graph."""

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        if not (self.training and self.stateless):
            return super().multi_step_forward(x_seq)
        rest = self.materialize_states((x_seq,), (self.v_reset or 0.0,), "m")
        (spikes,), _ = self.multi_step_functional_forward((x_seq,), rest)
        return spikes

    def materialize_states(self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str) -> tuple[Any, ...]:
        """SpikingJelly's membranes take the input's type; here a half-precision current charges a float32 one."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().materialize_states(inputs, states, step_mode)
        v = states[0]
        if not isinstance(v, Tensor) or v.shape != x.shape:
            v = torch.full_like(x, self.v_reset or 0.0, dtype=torch.float32)
        return (v.float(), *states[1:])


class LIF(_Neuron, neuron.LIFNode):
    """SpikingJelly's LIFNode; `fused` and in training, it computes the current of a Drive and all T steps at once."""

    fused = False

    def multi_step_forward(self, x_seq: Tensor | Drive) -> Tensor:
        if self.training and self.fused:
            return fire(self, x_seq)
        assert isinstance(x_seq, Tensor)
        return super().multi_step_forward(x_seq)


class PLIF(_Neuron, neuron.ParametricLIFNode):
    """SpikingJelly's ParametricLIFNode: 1 / tau = sigmoid(w), w one learned number per layer."""


class IF(_Neuron, neuron.IFNode):
    """SpikingJelly's IFNode: a LIF without a leak."""


def set_fused(network: nn.Module, fused: bool) -> None:
    """Whether training steps of `network` go through train/fused.py instead of SpikingJelly's modules, as far as it
    can compute them: a network with something that `not_fusable` names is left alone."""
    fused = fused and not_fusable(network) is None
    norms = read_by_neurons(network) if fused else set()
    for module in network.modules():
        if isinstance(module, Norm):
            module.fused = module in norms
        elif isinstance(module, LIF):
            module.fused = fused


def read_by_neurons(network: nn.Module) -> set[Norm]:
    """The normalisations of a Network whose results are read by LIF neurons alone, at most behind Hold and sums: those
    can leave a Drive. None of a network that decides by values what it computes, which cannot be traced."""
    if not any(isinstance(module, Norm) for module in network.modules()):
        return set()
    whole = nn.Sequential(*(network.get_submodule(part) for part in ("stem", "hold", "body")))
    try:
        nodes = _Tracer().trace(whole).nodes
    except Exception:  # whatever a forward of somebody's makes of values that stand for tensors
        return set()
    modules = {node: whole.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}

    def reads(node: fx.Node) -> bool:
        passes = isinstance(modules.get(node), Hold | Add) or node.target in (operator.add, operator.iadd)
        return isinstance(modules.get(node), LIF) or (passes and into_neurons(node))

    def into_neurons(node: fx.Node) -> bool:
        return bool(node.users) and all(map(reads, node.users))

    norms = [(node, module) for node, module in modules.items() if isinstance(module, Norm)]
    others = {module for node, module in norms if not into_neurons(node)}  # one may stand in several places
    return {module for _, module in norms} - others


class _Tracer(fx.Tracer):
    """Stops at what a Drive comes from and may go to, and at every other module without parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Norm | Hold | Add | neuron.BaseNode) or not any(True for _ in m.children())


def set_stateless(network: nn.Module, stateless: bool) -> bool:
    """Whether training steps of `network` keep no membranes; gives whether this is so of all its neurons: those of a
    zoo's model are SpikingJelly's own and are left alone."""
    nodes = [module for module in network.modules() if isinstance(module, neuron.BaseNode)]
    for node in nodes:
        if isinstance(node, _Neuron):
            node.stateless = stateless
    return stateless and all(isinstance(node, _Neuron) for node in nodes)


def not_fusable(network: nn.Module) -> str | None:
    """What of `network` the fused step cannot compute, in words; None if it computes all of it."""
    kinds = {type(module).__name__ for module in network.modules() if isinstance(module, neuron.BaseNode)}
    foreign = sorted(kinds - {LIF.__name__})
    return f"neurons of the kind {', '.join(foreign)}" if foreign else None


def neuron_of(config: NetConfig) -> tuple[type[LIF | PLIF | IF], dict[str, Any]]:
    """A student's kind of neuron and the arguments that it is made with."""
    shared = {
        "v_threshold": config.v_threshold,
        "v_reset": None if config.reset == "soft" else config.v_reset,
        "surrogate_function": SURROGATES[config.surrogate](),
        "detach_reset": config.detach_reset,
        "step_mode": "m",
    }
    if config.neuron == "if":
        return IF, shared
    leak = {"decay_input": config.decay_input, "init_tau" if config.neuron == "plif" else "tau": config.tau}
    return (PLIF if config.neuron == "plif" else LIF), shared | leak


def activation(config: NetConfig) -> nn.Module:
    """The non-linearity after a layer: SpikingJelly's multi-step LIFNode, ParametricLIFNode or IFNode in a student,
    ReLU in a teacher.

    LIFNode with decay_input=True is TSER's Eq. 2 with the input of the same step:
    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau, s[t] = (h[t] >= v_threshold), hard reset to v_reset.
    IFNode: h[t] = v[t-1] + x[t].
    """
    if not config.spiking:
        return nn.ReLU()
    kind, arguments = neuron_of(config)
    return kind(**arguments)


class Hold(nn.Module):
    """[1, B, ...] -> [T, B, ...], the same value at every step (direct coding); event input [T, B, ...] passes.

    It stands after the first convolution and its normalisation, so that they run once for a static image.
    """

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T

    def forward(self, x: Tensor | Drive) -> Tensor | Drive:
        steps = x.T if isinstance(x, Drive) else x.shape[0]
        if steps not in (1, self.T):
            raise ValueError(f"event input must have T = {self.T} steps on its first axis, got {steps}")
        return x.held(self.T) if isinstance(x, Drive) else x.expand(self.T, *x.shape[1:])


class Add(nn.Module):
    """Sum of a block's two branches; a module, so that tracing, counters and exports can name it."""

    def forward(self, x: Tensor | Drive, y: Tensor | Drive) -> Tensor | Drive:
        return x + y
