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
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path | None = None
    """Folder for evaluate.json and the plots; default: the checkpoint's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU where there is one."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Measure and write evaluate.json and, for a student, accuracy.png and rates.png; return the JSON's content."""
    from train.checkpoint import Checkpoint
    from train.metrics import pick_device, run_split, summary
    from train.record import versions, write_json

    checkpoint = Checkpoint.load(config.checkpoint)
    dataset = dataset_of(checkpoint, root=config.data_root)
    split = getattr(dataset, config.split)
    if not len(split.labels):
        raise ValueError(f"the {config.split} split of {dataset.name} is empty (data.val_fraction was 0?)")
    device = pick_device(config.device)
    outputs = run_split(checkpoint.network().to(device), split, checkpoint.preprocess, device=device)
    report = {
        **summary(outputs),
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": checkpoint.sha256,
        "dataset": dataset.name,
        "split": config.split,
        "device": device,
        "versions": versions(),
    }
    out = config.out or config.checkpoint.parent
    write_json(out / "evaluate.json", report)
    if checkpoint.net.spiking:
        plot(report, out)
    return report


def dataset_of(checkpoint: Checkpoint, *, root: Path | None = None) -> Dataset:
    """The data set that a checkpoint was trained on, by its provenance.

    Raises ValueError where the checkpoint does not say, or the data here has other classes.
    """
    import dataclasses
    import os

    from train.config import DataConfig
    from train.data import load

    recorded = checkpoint.provenance.get("config", {}).get("data")
    if recorded is None:
        raise ValueError("this checkpoint does not say which data set it was trained on")
    data = cli.from_dict(DataConfig, recorded)
    if root is None and "TSERVE_DATA" in os.environ:
        root = Path(os.environ["TSERVE_DATA"])
    dataset = load(dataclasses.replace(data, root=root or data.root, download=False))
    if dataset.classes != checkpoint.labels:
        raise ValueError(f"{dataset.name} under {root or data.root} has other classes than the checkpoint knows")
    return dataset


def plot(report: dict[str, Any], out: Path) -> None:
    """Draw accuracy over time steps and firing rates from evaluate.json's content."""
    import matplotlib

    from train.record import atomic

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = range(1, len(report["accuracy_by_T"]) + 1)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.bar(steps, [100 * a for a in report["accuracy_by_step"]], color="#a6bddb", label="step t alone")
    axes.plot(steps, [100 * a for a in report["accuracy_by_T"]], "o-", color="#045a8d", label="mean of steps 1 to t")
    axes.set(xlabel="time step t", ylabel=f"accuracy on {report['dataset']} {report['split']} (%)", ylim=(0, 100))
    axes.set_xticks(list(steps))
    axes.legend(loc="lower right")
    with atomic(out / "accuracy.png") as new:
        figure.savefig(new, dpi=150)
    plt.close(figure)

    names = list(report["firing_rates"])
    rates = [report["firing_rates"][name] for name in names]
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(steps), 1.2 + 0.32 * len(names)), layout="constrained")
    image = axes.imshow(rates, vmin=0, vmax=max(max(map(max, rates)), 1e-9), cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(steps)), [str(t) for t in steps])
    axes.set_xlabel("time step t")
    figure.colorbar(image, label="spikes per neuron and step")
    with atomic(out / "rates.png") as new:
        figure.savefig(new, dpi=150)
    plt.close(figure)


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
        print(f"\nfiring rate {report['firing_rate']:.4f} spikes per neuron and step")
        for name, rates in report["firing_rates"].items():
            print(f"  {name:<28} {'  '.join(f'{rate:.4f}' for rate in rates)}")
    plots = ", accuracy.png, rates.png" if report["firing_rate"] is not None else ""
    print(f"\nwritten: {out / 'evaluate.json'}{plots}")
    if report["firing_rate"] is not None:
        print(f"next:    python -m export.bundle {config.checkpoint}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
