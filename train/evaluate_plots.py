"""The pictures of `train.evaluate`, drawn from evaluate.json's content."""

from pathlib import Path
from typing import Any

from train.record import atomic


NAMED = 20  # classes that still have room for their names


def plot(report: dict[str, Any], out: Path) -> None:
    """Draw confusion.png and, of a student, accuracy.png and rates.png into the folder `out`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawings = {"confusion.png": confusion}
    if report["firing_rate"] is not None:
        drawings |= {"accuracy.png": accuracy, "rates.png": rates}
    for name, draw in drawings.items():
        figure = draw(report, plt)
        with atomic(out / name) as new:
            figure.savefig(new, dpi=150)
        plt.close(figure)


def accuracy(report: dict[str, Any], plt: Any) -> Any:
    """Accuracy of each step alone and of the mean of the first t."""
    steps = range(1, len(report["accuracy_by_T"]) + 1)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.bar(steps, [100 * a for a in report["accuracy_by_step"]], color="#a6bddb", label="step t alone")
    axes.plot(steps, [100 * a for a in report["accuracy_by_T"]], "o-", color="#045a8d", label="mean of steps 1 to t")
    axes.set(xlabel="time step t", ylabel=f"accuracy on {report['dataset']} {report['split']} (%)", ylim=(0, 100))
    axes.set_xticks(list(steps))
    axes.legend(loc="lower right")
    return figure


def rates(report: dict[str, Any], plt: Any) -> Any:
    """Firing rate of every layer at every step."""
    names = list(report["firing_rates"])
    values = [report["firing_rates"][name] for name in names]
    steps = range(len(values[0]))
    width = 1.2 + 0.9 * len(steps) + 0.08 * max(map(len, names))
    figure, axes = plt.subplots(figsize=(width, 1.2 + 0.32 * len(names)), layout="constrained")
    image = axes.imshow(values, vmin=0, vmax=max(max(map(max, values)), 1e-9), cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(list(steps), [str(t + 1) for t in steps])
    axes.set_xlabel("time step t")
    figure.colorbar(image, label="spikes per neuron and step")
    return figure


def confusion(report: dict[str, Any], plt: Any) -> Any:
    """Which class is taken for which: part of the images of a true class (row) that got an answer (column)."""
    counts = report["confusion"]
    parts = [[n / max(1, sum(row)) for n in row] for row in counts]
    K = len(counts)
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    image = axes.imshow(parts, vmin=0, vmax=1, cmap="cividis")
    if K <= NAMED:
        axes.set_xticks(range(K), report["classes"], rotation=90)
        axes.set_yticks(range(K), report["classes"])
        for true in range(K):
            for answer in range(K):
                if counts[true][answer]:
                    colour = "black" if parts[true][answer] > 0.5 else "white"
                    axes.text(answer, true, counts[true][answer], ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="answer", ylabel="true class")
    figure.colorbar(image, label="part of the true class")
    return figure
