"""Reports of export.exits for people: words, tables, a plot."""

from pathlib import Path
from typing import Any


def words(content: dict[str, Any]) -> str:
    """The chosen exit for people."""
    relax = f", relax {content['relax']:g}" if content["relax"] else ""
    return f"{content['rule']} > {content['threshold']:.3f}{relax}"


def table(content: dict[str, Any]) -> str:
    """The thresholds as lines of text; the chosen one is marked."""
    lines = [
        f"exit: {words(content)}",
        f"{'threshold':>12}  mean steps  accuracy   val accuracy  energy of an image, fp32 prices",
    ]
    for entry in content["table"]:
        mark = "*" if entry["threshold"] == content["threshold"] else " "
        val = "-" if entry["val_accuracy"] is None else f"{entry['val_accuracy']:.2%}"
        lines.append(
            f"{mark} {entry['threshold']:>10.4f}  {entry['mean_steps']:>10.3f}  {entry['accuracy']:>8.2%}  {val:>13}  "
            f"{entry['energy_J']:.3g} J"
        )
    return "\n".join(lines)


def markdown(content: dict[str, Any]) -> str:
    """The same as Markdown; the chosen row is bold."""
    lines = [
        "| threshold | mean steps | accuracy | energy of an image, fp32 prices | on validation images |",
        "|---|---|---|---|---|",
    ]
    for entry in content["table"]:
        cells = [
            f"{entry['threshold']:.3f}",
            f"{entry['mean_steps']:.2f}",
            f"{100 * entry['accuracy']:.2f} %",
            f"{1e6 * entry['energy_J']:.2f} uJ",
            "-" if entry["val_accuracy"] is None else f"{100 * entry['val_accuracy']:.2f} %",
        ]
        if entry["threshold"] == content["threshold"]:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(contents: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy over mean steps for every rule, one panel a model; the chosen exit is marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(contents), 3.8), layout="constrained")
    panels = figure.subplots(1, len(contents), squeeze=False, sharey=True)[0]
    for panel, (name, content) in zip(panels, contents.items(), strict=True):
        for (rule, points), style in zip(content["curves"].items(), ("-", "--", ":", "k-"), strict=False):
            steps, accuracy = ([point[key] for point in points] for key in ("mean_steps", "accuracy"))
            panel.plot(steps, [100 * a for a in accuracy], style, label=rule)
        chosen = next(entry for entry in content["table"] if entry["threshold"] == content["threshold"])
        label = f"chosen: {words(content)}"
        panel.plot(chosen["mean_steps"], 100 * chosen["accuracy"], "ko", label=label)
        panel.set(title=name, xlabel="mean time steps of an image", ylabel="accuracy on test images (%)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower right")
        panel.yaxis.set_tick_params(labelleft=True)
    figure.savefig(path, dpi=120, format="png")
