"""What other commands know of a student that its energy is compared with: its teacher, its exits, its file for Loihi.

What is not known is a text, the reason, in the place of what it would be.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.conventions import CONVENTIONS
from export.conventions_terms import CannotCount
from export.energy_account import once
from hardware.chip import Chip


if TYPE_CHECKING:
    from train.checkpoint import Checkpoint


TORCHVISION = "torchvision:"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Another ANN, counted densely by its own Graph."""

    net: str
    """Its network, in words."""
    sha256: str
    taught: bool
    """Whether it is the one that this student learned from."""
    accuracy: float | None
    conventions: Mapping[str, Mapping[str, float] | str]
    """By convention what one image costs it (acs, macs, accesses, access_J), or why that cannot be counted."""


@dataclass(frozen=True, kw_only=True)
class Early:
    """A student that stops when it is sure."""

    mean_steps: float
    accuracy: float | None
    accuracy_of_all: float | None
    """Of the same model with all its steps."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Beside:
    """All of it."""

    teacher: Teacher | str = "no teacher was given"
    early: Mapping[str, Early] | str = "no mean steps were given"
    """By precision, fp32 and int8."""
    net: Mapping[str, Any] | str = "no .net file was given"
    """What hardware.estimate says of the exported .net file."""
    accuracy: float | None = None
    accuracy_by_T: tuple[float, ...] | None = None
    """Of steps 1 to t, on the test split."""


def find(
    student: Checkpoint,
    path: Path,
    *,
    chip: Chip,
    teacher: Path | None = None,
    steps: float | None = None,
    bundle: Path | None = None,
    exits: Mapping[str, Any] | None = None,
    net: Mapping[str, Any] | None = None,
) -> Beside:
    """What is known of the student at `path`.

    teacher, steps, bundle: what a user names; else the teacher of the student's run and the bundle beside it are looked
    for. exits, net: what export.exits and export.to_loihi have just reported, where export.bundle asks. Raises
    ValueError for what was named and does not fit.
    """
    folder = bundle or path.parent / "bundle"
    by_T = student.metrics.get("accuracy_by_T")
    return Beside(
        teacher=_teacher(student, path, teacher, chip),
        early=_early(student, folder, steps=steps, exits=exits, named=bundle is not None),
        net=_cost(net) if net is not None else _exported_cost(student, path.parent, folder),
        accuracy=student.metrics.get("accuracy"),
        accuracy_by_T=tuple(by_T) if by_T else None,
    )


def dense(teacher: Checkpoint, chip: Chip) -> dict[str, dict[str, float] | str]:
    """What one image costs an ANN, by convention: each of its layers multiplies densely, once.

    Its Graph is that of the same layers with spikes, of which only the ANN's side is charged. Raises UnsupportedLayer
    for layers that a Graph cannot say.
    """
    from export.conventions_origin import origin_of
    from export.lower import lower_network

    net = dataclasses.replace(teacher.net, spiking=True, T=1, neuron="lif", reset="hard", v_reset=0.0, v_threshold=1.0)
    network = dataclasses.replace(teacher, net=net).network()
    graph = lower_network(network, teacher.preprocess)
    origin = origin_of(network, graph)
    found: dict[str, dict[str, float] | str] = {}
    for name, convention in CONVENTIONS.items():
        try:
            found[name] = once(convention.charges(graph, origin, chip))
        except CannotCount as reason:
            found[name] = str(reason)
    return found


def _teacher(student: Checkpoint, path: Path, named: Path | None, chip: Chip) -> Teacher | str:
    from export.lower import UnsupportedLayer
    from train.checkpoint import Checkpoint

    sha256, recorded = student.metrics.get("teacher_sha256"), student.provenance.get("config", {}).get("teacher")
    if named is not None:
        found = Checkpoint.load_teacher(named)
        sides = ("in_channels", "size", "num_classes", "event")
        if any(getattr(found.net, key) != getattr(student.net, key) for key in sides):
            raise ValueError(
                f"--teacher {named}: it is for other images or classes than the student; give one of the same data set"
            )
    elif sha256 is None:
        return "the student's file names no teacher; give one with --teacher PATH"
    elif recorded is not None and recorded.startswith(TORCHVISION):
        return f"{recorded} is counted by no Graph here; give a teacher.pt with --teacher PATH"
    else:
        file = path.parent / "teacher" / "teacher.pt" if recorded is None else Path(recorded)
        if not file.is_file():
            return f"{_named(file, path)}, which taught the student, is not there; give it with --teacher PATH"
        found = Checkpoint.load_teacher(file)
        if found.sha256 != sha256:
            return f"{_named(file, path)} is another than taught the student; give the right one with --teacher PATH"
    try:
        conventions = dense(found, chip)
    except (UnsupportedLayer, ValueError) as reason:
        return f"the teacher cannot be counted: {reason}"
    return Teacher(
        net=f"{found.net.name}, width {found.net.width:g}",
        sha256=found.sha256,
        taught=found.sha256 == sha256,
        accuracy=found.metrics.get("accuracy"),
        conventions=conventions,
    )


def _named(file: Path, student: Path) -> str:
    """A file as the student's folder has it, or its name alone: reasons are kept, and read on other machines."""
    return str(file.relative_to(student.parent) if file.is_relative_to(student.parent) else file.name)


def _early(
    student: Checkpoint, folder: Path, *, steps: float | None, exits: Mapping[str, Any] | None, named: bool
) -> Mapping[str, Early] | str:
    """The mean steps of an image, by precision."""
    if steps is not None:
        if not 1 <= steps <= student.net.T:
            raise ValueError(f"--steps must be in 1 to T = {student.net.T}, got {steps}")
        return dict.fromkeys(
            ("fp32", "int8"), Early(mean_steps=steps, accuracy=None, accuracy_of_all=None, source="--steps")
        )
    if exits is None:
        about = _read(folder / "bundle.json")
        if about is None or about.get("checkpoint_sha256") != student.sha256 or "exits" not in about:
            what = "is no bundle of this student"
            if named:
                raise ValueError(f"--bundle {folder} {what}; `python -m export.bundle` writes one")
            return f"{folder.name}/ {what}, which would say how many steps an image takes; give --steps or --bundle"
        exits = about["exits"]
    found = {}
    for precision, entry in exits.items():
        row = next(row for row in entry["table"] if row["threshold"] == entry["threshold"])
        on = entry["measured_on"]
        source = f"{on['images']} {on['split']} images of {on['dataset']}, {entry['rule']} > {entry['threshold']:.3f}"
        found[precision] = Early(
            mean_steps=row["mean_steps"],
            accuracy=row["accuracy"],
            accuracy_of_all=entry["table"][-1]["accuracy"],
            source=source,
        )
    return found


def _exported_cost(student: Checkpoint, *folders: Path) -> Mapping[str, Any] | str:
    """Of the .net file beside the student or in its bundle."""
    for folder in folders:
        said = _read(folder / "student.net.json")
        if said is not None and said.get("checkpoint_sha256") == student.sha256:
            return _cost(said)
    return "no student.net.json of this student is beside it; `python -m export.to_loihi` writes one"


def _cost(said: Mapping[str, Any]) -> Mapping[str, Any] | str:
    if "unsupported" in said:
        return str(said["unsupported"])
    cost: Mapping[str, Any] | None = said.get("cost")
    return "the .net file was not run (--verify none), so its events are not known" if cost is None else cost


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no such file. Raises ValueError for another content."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content
