"""Table 4 as JSON types and as tables: the paper's rows and their arithmetic, our recount, our students."""

from itertools import groupby
from typing import Any

from train.experiments import report, table4, table4_work
from train.experiments.experiment import Budget, Experiment, Variant
from train.experiments.report import percent, points, says
from train.experiments.table4_students import CONVENTIONS


NAMES = {"resnet18": "ResNet-18", "vgg16": "VGG-16"}


def content(
    experiment: Experiment,
    budget: Budget,
    variants: list[Variant],
    rows: list[dict[str, Any]],
    *,
    seeds: int,
    seconds: float,
) -> dict[str, Any]:
    """The JSON of the experiment: as of every other, and what the paper's table says of itself."""
    return {
        **report.content(experiment, budget, variants, rows, seeds=seeds, seconds=seconds),
        "paper": paper(),
        "recount": table4_work.content(),
    }


def paper() -> dict[str, Any]:
    """The paper's rows and their arithmetic, and the mean rate of spikes that each row's ACs imply."""
    found = table4.content()
    shapes = {config.name: table4_work.work(config, "tser_compat") for config in table4_work.PAPERS}
    rows = [{**row, "rate": shapes[row["network"]].rate(row["acs"])} for row in found["rows"]]
    return {**found, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """The tables of a report."""
    lines = [f"# {found['title']}", "", f"{found['source']}. AC: accumulation, MAC: multiply-accumulation.", ""]
    lines += [*printed(found), "", *recounted(found), "", *students(found), ""]
    lines += [f"- {note}" for note in found["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def printed(found: dict[str, Any]) -> list[str]:
    """The paper's rows beside what their counts give."""
    rows, pairs, prices = found["paper"]["rows"], found["paper"]["impossible"], found["paper"]["prices"]
    lines = ["## The paper's rows", ""]
    lines += [
        f"Energy = {prices['ac_J'] * 1e12:g} pJ x ACs + {prices['mac_J'] * 1e12:g} pJ x MACs. Computed: from the"
        " counts that the row prints; it contradicts them where no counts that round to these give its energy. Rate:"
        " the mean rate of spikes that its ACs imply, weighted by operations.",
        "",
        "| network | method | ACs (M) | MACs (M) | rate (%) | computed (mJ) | printed (mJ) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = f"{row['acs'] / 1e6:.2f} | {row['macs'] / 1e6:.1f} | {percent(row['rate'])}"
        energy = f"{row['computed_J'] * 1e3:.4f} | {row['printed_J'] * 1e3:.2f}"
        verdict = "" if row["agrees"] else "contradicts its counts"
        lines.append(f"| {NAMES[row['network']]} | {row['method']} | {counts} | {energy} | {verdict} |")
    wrong = sum(not row["agrees"] for row in rows)
    lines += ["", f"{wrong} of {len(rows)} rows contradict their own counts."]
    for network, of in groupby(pairs, lambda pair: pair["network"]):
        listed = [f"{pair['fewer_acs']} above {pair['more_acs']}" for pair in of]
        lines[-1] += (
            f" The order of {NAMES[network]} is impossible: its rows have the same MACs, so energy must grow with ACs,"
            f" but {len(listed)} pairs stand the other way round ({', '.join(listed)})."
        )
    return lines


def recounted(found: dict[str, Any]) -> list[str]:
    """The networks in three conventions."""
    lines = ["## Our recount", ""]
    lines += [
        "ResNet-18 and VGG-16 at T = 4 on an image of CIFAR-100, counted from their shapes (OPs: as if every value"
        " spiked). Energy at the mean rate of spikes that the paper's TSER row implies, the same everywhere; two"
        " numbers are the ends of what poolings of spikes may let through. ANN: the same layers, run once.",
        "",
        "| network | pooling | convention | OPs (M) | MACs (M) | rate (%) | energy (mJ) | ANN (mJ) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in found["recount"]:
        for entry in network["conventions"]:
            ends = dict.fromkeys(f"{entry[key] * 1e3:.3f}" for key in ("least_J", "most_J"))
            counts = f"{entry['operations'] / 1e6:.3f} | {entry['macs'] / 1e6:.3f} | {percent(network['rate'])}"
            lines.append(
                f"| {NAMES[network['network']]} | {network['pool']} | `{entry['name']}` | {counts}"
                f" | {' to '.join(ends)} | {entry['ann_J'] * 1e3:.3f} |"
            )
    said = [
        f"{NAMES[network['network']]} {paper['operations']['printed'] / 1e9:.2f} G OPs and"
        f" {paper['macs']['printed'] / 1e6:.1f} M MACs ({_agreement(paper)})"
        for network in found["recount"]
        if (paper := network["paper"])
    ]
    return [*lines, "", f"The paper prints, beside `tser_compat` with average pooling: {'; '.join(said)}."]


def _agreement(paper: dict[str, Any]) -> str:
    if all(entry["agrees"] for entry in paper.values()):
        return "both ours, rounded"
    return "not ours: " + ", ".join(key for key, entry in paper.items() if not entry["agrees"])


def students(found: dict[str, Any]) -> list[str]:
    """What was trained: accuracy, rates, counts, and energy in four conventions, beside the ANN of the same layers."""
    lines = ["## Our students", "", *says(found), ""]
    lines += [
        "Energy of an image in uJ, mean over test images; in brackets its share of the ANN of the same layers, run"
        " once. ACs and MACs: by `tser_compat`. Firing rate: mean over the layers; feature rate: of the last layer"
        " alone, the paper's Eq. 12.",
        "",
        "| | accuracy (%) | firing rate (%) | feature rate (%) | ACs (M) | MACs (M) | "
        + " | ".join(f"`{name}`" for name in CONVENTIONS)
        + " |",
        "|---" * (6 + len(CONVENTIONS)) + "|",
    ]
    for group, variants in groupby(found["variants"], lambda v: v["group"]):
        lines += [f"| **{group}** " + "| " * (5 + len(CONVENTIONS)) + "|"] if group else []
        counted = next((row for row in found["runs"] if row["group"] == group), None)
        ann = counted["ann_J"] if counted else None
        lines += [f"| {v['name']} | {' | '.join(_cells(v['measures'], ann))} |" for v in variants]
        if counted:
            macs = f"| | | | | {counted['tser_compat_ann_macs'] / 1e6:.3f} "
            energy = "".join(f"| {counted['ann_J'][name] * 1e6:.4g} " for name in CONVENTIONS)
            lines.append(f"| the ANN {macs}{energy}|")
    lines += ["", *differences(found)]
    return lines


def _cells(measures: dict[str, Any], ann: dict[str, float] | None) -> list[str]:
    cells = [_figure(measures[key], 100, ".2f") for key in ("accuracy", "firing_rate", "feature_firing_rate")]
    cells += [_figure(measures[f"tser_compat_{key}"], 1e-6, ".3f") for key in ("acs", "macs")]
    for name in CONVENTIONS:
        measure = measures[f"{name}_J"]
        beside = f" ({measure['mean'] / ann[name]:.3f})" if ann and measure["mean"] is not None else ""
        cells.append(_figure(measure, 1e6, ".4g") + beside)
    return cells


def _figure(measure: dict[str, Any], scale: float, form: str) -> str:
    """Mean, standard deviation over seeds if there are several, and what the paper prints if it does."""
    paper = "" if measure["paper"] is None else f" [paper: {format(scale * measure['paper'], form)}]"
    if measure["mean"] is None:
        return paper.strip()
    spread = "" if measure["std"] is None else f" ± {format(scale * measure['std'], '.2g')}"
    return format(scale * measure["mean"], form) + spread + paper


def differences(found: dict[str, Any]) -> list[str]:
    """From the baseline, paired by seed: accuracy in points, energy in percent of the baseline's."""
    lines = [
        f'Difference from "{found["baseline"]}" of accuracy in points and of energy in percent (95 % interval):',
        "",
        "| | accuracy | " + " | ".join(f"`{name}`" for name in CONVENTIONS) + " |",
        "|---" * (2 + len(CONVENTIONS)) + "|",
    ]
    base = {v["group"]: v["measures"] for v in found["variants"] if v["name"] == found["baseline"]}
    for v in found["variants"]:
        if v["name"] == found["baseline"]:
            continue
        cells = [_difference(v["measures"]["accuracy"]["difference"], 1.0)]
        for key in (f"{name}_J" for name in CONVENTIONS):
            cells.append(_difference(v["measures"][key]["difference"], base[v["group"]][key]["mean"]))
        lines.append(f"| {' '.join((v['group'], v['name'])).strip()} | {' | '.join(cells)} |")
    return lines


def _difference(difference: dict[str, Any] | None, of: float | None) -> str:
    if difference is None or of is None:
        return ""
    interval = difference["interval"]
    ends = " ({} to {})".format(*(points(end / of) for end in interval)) if interval else ""
    return points(difference["mean"] / of) + ends
