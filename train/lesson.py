"""What a method, its student and its teacher do in a run: before it, before a step, and in a step."""

from typing import cast

import torch
from torch import Tensor, nn

from train import engine, loop, parallel
from train.checkpoint import Checkpoint, Preprocess
from train.config import DistillConfig, NetConfig
from train.data import Dataset, Targets
from train.features import Observed
from train.metrics import pick_device
from train.networks import Network, build
from train.networks.network import NeuronLinear, firing_drive
from train.neurons import Norm


class Lesson:
    """A student and, where the method has one, a frozen teacher."""

    def __init__(
        self, config: DistillConfig, dataset: Dataset, teacher: Checkpoint | None, *, preprocess: Preprocess
    ) -> None:
        self.config, self.dataset, self.teacher = config, dataset, teacher
        self.preprocess = preprocess
        """What makes the student's input of images; the teacher has its own."""

    def prepare(self, network: Network) -> nn.Module:
        """The module that is trained in place of the fresh `network`. Raises ValueError as `observe`."""
        if self.config.init_from_teacher:
            copy_weights(self.teacher, network)
        taught = self.teacher.network().requires_grad_(False) if self.teacher else None
        self.student, self.observed_teacher = observe(self.config, self.dataset, network, taught)
        if taught and self.config.channels_last:
            taught.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.answer: nn.Module | None = self.observed_teacher
        if self.observed_teacher and not self.observed_teacher.layers and self.config.engine == "compiled":
            self.answer = cast(nn.Module, torch.compile(self.observed_teacher))
        for remark in self.config.method.remarks(len(self.dataset.classes)):
            parallel.say(f"warning: {remark}")
        return self.student

    def before_step(self, network: Network, done: float) -> None:
        """Set the time steps of the student for the part `done` of all steps, and to its own number at the end."""
        T = network.config.T
        network.hold.T = T if done >= 1 else steps_at(done, T=self.config.method.steps(T), grow_T=self.config.grow_T)

    def step(self, model: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The loss's terms; model: what `prepare` gave, or what wraps it."""
        taught = None
        if self.teacher and self.observed_teacher and self.answer is not None:  # a compiled module has no truth value
            self.observed_teacher.to(images.device)
            with torch.no_grad():
                answer = self.answer(self.teacher.preprocess(images))
            taught = self.observed_teacher.outputs(answer)
        student = self.student.outputs(model(self.preprocess(images)))
        return loop.weighted(targets, lambda target: self.config.method.loss(student, taught, target))


def observe(
    config: DistillConfig, dataset: Dataset, network: Network, taught: Network | None
) -> tuple[Observed, Observed | None]:
    """Student and teacher with the features that the method reads, and its adapter beside the student.

    Raises ValueError for features that a network does not have, that do not match, or that the settings exclude.
    """
    method, T = config.method, network.config.T
    layers = method.layers(network.places, taught.places if taught else None)
    if dataset.frames is not None and (method.steps(T) != T or config.grow_T):
        raise ValueError(
            f"{dataset.name} has {dataset.frames} frames a recording, one for each time step: no --grow_T, and no "
            f"method that runs other steps in training ({method.name} runs {method.steps(T)})"
        )
    if layers.student and (config.checkpoint_segments or config.engine == "compiled"):
        raise ValueError(
            f"method {method.name} reads features of the student ({', '.join(layers.student)}): "
            "no --checkpoint_segments, which computes them twice, and no --engine compiled"
        )
    images = torch.zeros(2, dataset.channels, dataset.size, dataset.size)
    frames = images if dataset.frames is None else images.expand(dataset.frames, -1, -1, -1, -1)
    student = Observed(network, layers.student)
    teacher = Observed(taught, layers.teacher, differentiable=layers.differentiable) if taught else None
    shapes = teacher.shapes(frames) if teacher else {}
    student.adapter = method.adapter(student.shapes(frames), shapes, len(dataset.classes))
    return student, teacher


def rehearse(config: DistillConfig, dataset: Dataset, teacher: NetConfig | None) -> None:
    """Raise ValueError now for what `observe` and the engine would refuse once a teacher is there; shapes alone are
    computed."""
    device = pick_device(config.device)
    engine.check_precision(config.precision, device)
    with torch.device("meta"):
        network = build(config.net)
        engine.check(network, config, device=device)
        observe(config, dataset, network, build(teacher) if teacher else None)


def steps_at(done: float, *, T: int, grow_T: float) -> int:
    """Time steps of a student when the part `done` of all training steps is over: 1 to T - 1, each for an equal share
    of the part grow_T, then T. TSER's loss treats each time step by itself, so shorter T are valid on the way."""
    return T if done >= grow_T else 1 + int(done / grow_T * (T - 1))


def copy_weights(teacher: Checkpoint | None, network: Network) -> None:
    """Start a student from its teacher's weights, the normalised currents as wide as a fresh student's.

    A ReLU passes on any positive drive, a LIF fires at v_threshold: weight and bias of what makes the currents are
    scaled by the drive that makes a neuron fire (train.networks.network.initialise). Raises ValueError for a teacher of
    another shape.
    """
    if teacher is None:
        raise ValueError("--init_from_teacher: this method has no teacher; take --method.name tser or skd")
    own = network.state_dict()
    if differing := [n for n in own if n not in teacher.weights or teacher.weights[n].shape != own[n].shape]:
        name = differing[0]
        theirs = list(teacher.weights[name].shape) if name in teacher.weights else "not there"
        raise ValueError(
            f"--init_from_teacher needs a teacher of the student's network and width: {name} is {theirs} in the "
            f"teacher ({teacher.net.name}, width {teacher.net.width}) and {list(own[name].shape)} in the student; "
            "take --teacher_width 1, or a --teacher that was trained with --net.width of the student"
        )
    network.load_state_dict(teacher.weights)
    for module in network.modules():
        if isinstance(module, Norm | NeuronLinear):
            module.weight.data *= firing_drive(network.config)
            module.bias.data *= firing_drive(network.config)
