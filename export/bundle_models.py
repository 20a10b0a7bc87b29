"""The ONNX models of a bundle: both forms of every precision, verified, and when an image may stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from export import exits
from export.onnx_model import Form
from export.prepare import NotForLoihi
from export.to_onnx import OnnxConfig, Result
from export.to_onnx import main as to_onnx


if TYPE_CHECKING:
    from hardware.chip import Chip


FILES: dict[str, dict[Form, str]] = {
    "fp32": {"unrolled": "model.onnx", "step": "step.onnx"},
    "int8": {"unrolled": "model.int8.onnx", "step": "step.int8.onnx"},
}


@dataclass(frozen=True, kw_only=True)
class Models:
    """What was written of a student, by precision."""

    results: dict[str, dict[Form, Result]]
    exits: dict[str, dict[str, Any]]
    """What export.exits reports."""
    unsupported: dict[str, str]
    """Why a precision is missing."""

    @property
    def verification(self) -> dict[str, Any]:
        """For verify.json."""
        found: dict[str, Any] = {precision: {"unsupported": reason} for precision, reason in self.unsupported.items()}
        for precision, forms in self.results.items():
            found[precision] = {
                form: {
                    "onnxruntime": result.verdict.to_json(),
                    "evaluator": result.evaluated.to_json() if result.evaluated else None,
                }
                for form, result in forms.items()
            }
        return found

    def served(self, *, tolerance: float) -> str:
        """The precision to serve by default: int8 unless it costs accuracy on the validation images."""
        by_all = {precision: all_steps(found) for precision, found in self.exits.items()}
        return "int8" if "int8" in by_all and by_all["int8"] >= by_all["fp32"] - tolerance else "fp32"


def all_steps(found: dict[str, Any]) -> float:
    """The accuracy of all T steps: on validation images, where there are none on test images."""
    last = found["table"][-1]
    return float(last["accuracy"] if last["val_accuracy"] is None else last["val_accuracy"])


def write_models(
    checkpoint: Any, folder: Path, *, common: dict[str, Any], samples: int, net: Path, chip: Chip, tolerance: float
) -> Models:
    """Write, verify and measure the models in `folder`, each with its exit table in its metadata.

    common: checkpoint and data_root, as every command takes them. net: the .net file, whose integers the int8 models
    get if it is there. Raises NotVerified.
    """
    prices = exits.prices_of(checkpoint, chip)
    test, validation = exits.splits(checkpoint, images=0, root=common["data_root"])
    results: dict[str, dict[Form, Result]] = {}
    found: dict[str, dict[str, Any]] = {}
    unsupported: dict[str, str] = {}
    for precision, names in FILES.items():
        scales = net if precision == "int8" and net.exists() else None
        try:
            results[precision] = {
                form: to_onnx(
                    OnnxConfig(
                        **common,
                        out=folder / names[form],
                        precision=precision,  # type: ignore[arg-type]
                        form=form,
                        samples=samples,
                        scales=scales,
                    )
                )
                for form in get_args(Form)
            }
        except NotForLoihi as reason:
            unsupported[precision] = str(reason)
            continue
        model = folder / names["unrolled"]
        seen = exits.measure(model, validation, prices=prices) if validation is not None else None
        found[precision] = exits.report(exits.measure(model, test, prices=prices), seen, tolerance=tolerance)
        for name in names.values():
            exits.stamp(folder / name, found[precision])
    return Models(results=results, exits=found, unsupported=unsupported)
