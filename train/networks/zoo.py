"""Models of SpikingJelly's zoo by name (`sj:spikformer_cifar10`), for training and evaluation.

Names are the factory functions of `spikingjelly.activation_based.model`, and the networks of its parametric_lif_net.
They are spiking only, have no `width`, and are not exported (export/lower.py).

Logits of every step, [T, B, K]: sew_*, spiking_*, spikformer_*, ms_resnet*, max_resnet18, ottt_* and the networks of
parametric_lif_net (CIFAR10Net .., whose "logits" are votes of spikes). Logits of the mean over T only, given as
[1, B, K] so that every loss and measure takes them as one step: maxformer_*, qkformer_*, sdt_*, att_ms_resnet18,
masnn_dvs128_gesture.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from train.config import NetConfig
from train.errors import unknown
from train.networks.network import Network, Places
from train.neurons import Hold, neuron_of
from train.torchvision_guard import import_torchvision


PREFIX = "sj:"

# Of these modules a model takes its neuron from outside; those of the others have the one of their publication.
TAKE_NEURONS = ("parametric_lif_net", "sew_resnet", "spiking_resnet", "spiking_vgg")
# Models of these take one step at a time (online training through time); these average what their head gives.
STEPWISE, HEAD_THEN_MEAN = ("spiking_vggws_ottt",), ("ms_resnet",)
NOT_OFFERED = ("width", "norm")
NEURON_SETTINGS = ("tau", "v_threshold", "v_reset", "reset", "neuron", "decay_input", "surrogate", "detach_reset")


@cache
def factories() -> dict[str, Callable[..., nn.Module]]:
    """What makes each model of the zoo, by name."""
    import_torchvision()
    from spikingjelly.activation_based import model

    found: dict[str, Callable[..., nn.Module]] = {}
    for info in pkgutil.iter_modules(model.__path__):
        module = importlib.import_module(f"{model.__name__}.{info.name}")
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            if inspect.isfunction(member) or info.name == "parametric_lif_net":
                found[name] = member
    return found


def zoo(config: NetConfig) -> Network:
    """The model that `config.name`, "sj:NAME", names.

    T, classes, channels and size go to factories that take them. Raises ValueError for an unknown name (with the
    nearest ones), a teacher, a setting that the model does not have, and images or classes that it does not take.
    """
    name = config.name.removeprefix(PREFIX)
    if name not in factories():
        raise unknown("model of SpikingJelly's zoo", name, factories())
    if not config.spiking:
        raise ValueError(
            f"{config.name}: zoo models are spiking only; take a teacher of another network, "
            "for example --net.name resnet34"
        )
    family = factories()[name].__module__.rpartition(".")[2]
    refused = NOT_OFFERED if family in TAKE_NEURONS else (*NOT_OFFERED, *NEURON_SETTINGS)
    for field in dataclasses.fields(config):
        if field.name in refused and getattr(config, field.name) != field.default:
            raise ValueError(f"net.{field.name} does not apply to {config.name}, which is built as it was published")
    with torch.device("meta"):  # computes shapes alone
        model = Zoo(config, make(config, name, family), family).eval()
        shape = (config.T, 1, config.in_channels, config.size, config.size)
        try:
            with torch.no_grad():
                logits = model(torch.zeros(shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _misfit(config, error) from error
    if logits.shape[2:] != (config.num_classes,):
        raise ValueError(f"{config.name} knows {logits.shape[2]} classes; the data has {config.num_classes}")
    return Zoo(config, make(config, name, family), family)


def make(config: NetConfig, name: str, family: str) -> nn.Module:
    """Call the factory with those of our settings that it takes. Raises ValueError for those that it refuses."""
    factory = factories()[name]
    taken = inspect.signature(factory).parameters
    known: dict[str, Any] = {
        "T": config.T,
        "in_channels": config.in_channels,
        "num_classes": config.num_classes,
        "input_size": (config.size, config.size),
        "img_size_h": config.size,
        "img_size_w": config.size,
        "cnf": "ADD",  # of SEW: what Fang et al. 2021 recommend
    }
    arguments = {key: value for key, value in known.items() if key in taken}
    if family in TAKE_NEURONS:
        kind, settings = neuron_of(config)
        arguments |= {"spiking_neuron": kind, **settings}
    if family in (*TAKE_NEURONS, *STEPWISE) and family != "parametric_lif_net":
        arguments["num_classes"] = config.num_classes  # among the factory's **kwargs
    try:
        return factory(**arguments)
    except (ValueError, AssertionError) as error:
        raise _misfit(config, error) from error


def _misfit(config: NetConfig, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"{config.name} does not take T = {config.T} steps of {config.in_channels} channels of {config.size} pixels "
        f"({lines[0]})"
    )


class Zoo(Network):
    """A model of the zoo as a student: images [B, C, H, W] or frames [T, B, C, H, W] -> logits [T or 1, B, K].

    The model is `body`, with its own initial weights; it sees the image at every step, and starts every call anew.
    `places` has no stages; its classifier is "" where the logits are not those of a linear layer.
    """

    divisible = False

    def __init__(self, config: NetConfig, model: nn.Module, family: str) -> None:
        nn.Module.__init__(self)
        self.config, self.segments = config, 0
        self.stem, self.hold, self.body = nn.Sequential(), Hold(config.T), model  # type: ignore[assignment]
        self.stepwise, self.averaged = family in STEPWISE, family in HEAD_THEN_MEAN
        if not self.stepwise:
            functional.set_step_mode(model, "m")
        linear = [f"body.{path}" for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        found = bool(linear) and self.get_submodule(linear[-1]).out_features == config.num_classes
        self.places = Places(stages=(), penultimate="", classifier=linear[-1] if found else "")
        self._seen: Tensor | None = None
        if self.averaged:
            self.get_submodule(self.places.classifier).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, out: Tensor) -> None:
        self._seen = out

    def forward(self, images: Tensor) -> Tensor:
        functional.reset_net(self.body)
        frames: Tensor = self.hold(images.unsqueeze(0) if images.dim() == 4 else images)
        if self.stepwise:
            return torch.stack([self.body(frame) for frame in frames])
        logits: Tensor = self.body(frames)
        if self.averaged and self._seen is not None:
            logits, self._seen = self._seen, None
        return logits if logits.dim() == 3 else logits.unsqueeze(0)
