"""`python -m train.evaluate CKPT`: accuracy over time steps, calibration and firing rates on the test split."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from train import cli


if TYPE_CHECKING:
    from train.checkpoint import Checkpoint
    from train.data import Dataset


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a checkpoint."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt or teacher.pt to measure."""
    split: Literal["test", "val", "train"] = "test"
    """Which images of the data set that it was trained on."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from. For
    `folder`, whose root is the data set itself, always the latter."""
    out: Path | None = None
    """Folder for evaluate.json and the plots; default: the checkpoint's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU where there is one."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Measure, write evaluate.json and its pictures (accuracy and rates for a student), and return its content."""
    from train.checkpoint import Checkpoint
    from train.evaluate_plots import plot
    from train.metrics import confusion, pick_device, run_split, summary
    from train.record import versions, write_json

    checkpoint = Checkpoint.load(config.checkpoint)
    dataset = dataset_of(checkpoint, root=config.data_root, split=config.split)
    split = getattr(dataset, config.split)
    if not len(split.labels):
        raise ValueError(f"the {config.split} split of {dataset.name} is empty (data.val_fraction was 0?)")
    device = pick_device(config.device)
    outputs = run_split(checkpoint.network().to(device), split, checkpoint.preprocess, device=device)
    report = {
        **summary(outputs),
        "classes": list(checkpoint.labels),
        "confusion": confusion(outputs.logits.mean(0), outputs.labels),
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": checkpoint.sha256,
        "dataset": dataset.name,
        "dataset_md5": dict(dataset.md5),
        "split": config.split,
        "device": device,
        "versions": versions(),
    }
    out = config.out or config.checkpoint.parent
    write_json(out / "evaluate.json", report)
    plot(report, out)
    return report


def dataset_of(checkpoint: Checkpoint, *, root: Path | None = None, split: str = "test") -> Dataset:
    """The data set that a checkpoint was trained on, by its provenance; `split` is what will be read of it.

    Other data than it was trained on is named on stderr. Raises ValueError where the checkpoint does not say, the data
    here has other classes, or the training images, of which "train" and "val" are made, are others.
    """
    import dataclasses
    import os

    from train.config import DataConfig
    from train.data import load

    recorded = checkpoint.provenance.get("config", {}).get("data")
    if recorded is None:
        raise ValueError("this checkpoint does not say which data set it was trained on")
    data = cli.from_dict(DataConfig, recorded)
    if root is None and "TSERVE_DATA" in os.environ and data.name != "folder":  # whose root is no place of several
        root = Path(os.environ["TSERVE_DATA"])
    root = root or data.root
    if data.name == "folder" and not root.is_dir():
        raise ValueError(
            f"{root}, the folder that this checkpoint was trained on, is not there; say where it is: --data_root"
        )
    dataset = load(dataclasses.replace(data, root=root, download=False))
    if dataset.classes != checkpoint.labels:
        raise ValueError(f"{dataset.name} under {root} has other classes than the checkpoint knows")
    recorded_md5 = checkpoint.provenance.get("dataset_md5") or dataset.md5
    changed = [name for name in {**recorded_md5, **dataset.md5} if recorded_md5.get(name) != dataset.md5.get(name)]
    text = f"{dataset.name} under {root} is not what the checkpoint was trained on: {', '.join(changed)} has changed"
    if split != "test" and set(changed) - {"test", "val"}:  # the names of a folder's or of events' test images
        raise ValueError(f"{text}, so that nobody knows which images are its {split} split; only test can be measured")
    if changed:
        print(f"warning: {text} (its md5 is another)", file=sys.stderr, flush=True)
    return dataset


def command(argv: list[str]) -> None:
    """Parse, run, print the table that evaluate.json holds."""
    config = cli.parse(EvaluateConfig, argv=argv, prog="python -m train.evaluate", description=__doc__ or "")
    report = main(config)
    out = config.out or config.checkpoint.parent
    print(
        f"{report['dataset']} {report['split']}, {report['images']} images: accuracy {report['accuracy']:.2%}, ", end=""
    )
    print(f"calibration error {report['calibration_error']:.4f}")
    if report["firing_rate"] is not None:
        print("\n  t   step t alone   steps 1 to t")
        for t, (alone, mean) in enumerate(zip(report["accuracy_by_step"], report["accuracy_by_T"], strict=True), 1):
            print(f"{t:>3}   {alone:>12.2%}   {mean:>12.2%}")
        print(f"mean of the steps {report['step_mean']:.2%}, spread {report['step_spread']:.2%}")
        print(f"\nfiring rate {report['firing_rate']:.4f} spikes per neuron and step, mean over layers, ", end="")
        print(f"{report['feature_firing_rate']:.4f} in the last layer")
        for name, rates in report["firing_rates"].items():
            print(f"  {name:<28} {'  '.join(f'{rate:.4f}' for rate in rates)}")
    plots = ", confusion.png" + (", accuracy.png, rates.png" if report["firing_rate"] is not None else "")
    print(f"\nwritten: {out / 'evaluate.json'}{plots}")
    if report["firing_rate"] is not None:
        print(f"next:    python -m export.bundle {config.checkpoint}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
