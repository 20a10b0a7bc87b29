"""The model card and the summary table: words and numbers drawn from the JSON that the commands wrote.

`python -m export.card BUNDLE [--json FILE]` prints a bundle's summary as Markdown and can keep its figures in one file.
"""

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from export.energy_account import joules
from export.energy_view import markdown
from export.exits_view import words
from train import cli
from train.checkpoint import Checkpoint
from train.elsewhere import METHOD as ELSEWHERE
from train.record import write_json


def percent(share: float | None) -> str:
    """0.9812 -> 98.12 %."""
    return "-" if share is None else f"{100 * share:.2f} %"


def summary_rows(
    about: dict[str, Any], evaluation: dict[str, Any], energy: dict[str, Any], verification: dict[str, Any]
) -> list[tuple[str, str]]:
    """What a person wants to know first, as (what, value)."""
    per_image, ann = energy["per_image"], energy["per_image"]["ann"]
    rows = [
        ("model", f"{about['name']}, {len(about['labels'])} classes, T={about['T']}"),
        ("test images", f"{evaluation['images']} of {evaluation['dataset']}"),
        ("accuracy of the teacher", percent(about["metrics"]["teacher_accuracy"])),
        ("accuracy of the student", percent(evaluation["accuracy"])),
        ("  steps 1 to t, t = 1..T", "  ".join(percent(a) for a in evaluation["accuracy_by_T"])),
        ("  step t alone", "  ".join(percent(a) for a in evaluation["accuracy_by_step"])),
        ("firing rate", f"{evaluation['firing_rate']:.4f} spikes per neuron and step, mean over layers"),
        (
            "energy of an image",
            f"{joules(per_image['energy_J'])} ({per_image['sops']:,.0f} SOPs, {per_image['macs']:,.0f} MACs)",
        ),
        ("energy of the ANN", f"{joules(ann['energy_J'])} ({ann['macs']:,} MACs), ratio {per_image['ratio']:.3f}"),
        ("  convention", f"{energy['convention']['name']}, fp32 prices of {energy['chip']}, no memory access"),
        *convention_rows(energy),
        *comparison_rows(energy),
    ]
    return [
        *rows,
        *onnx_rows(verification["onnx"]),
        *exit_rows(about),
        *netx_rows(verification["netx"]),
        *nir_rows(verification["nir"]),
    ]


def convention_rows(energy: dict[str, Any]) -> list[tuple[str, str]]:
    """The energy of an image in every convention, beside the ANN's in the same one."""
    rows = []
    for entry in energy["conventions"]:
        if "unavailable" in entry:
            rows.append((f"  by {entry['name']}", f"left out: {entry['unavailable']}"))
            continue
        total = entry["per_image"]
        snn, ann = joules(total["energy_J"]), joules(total["ann"]["energy_J"])
        rows.append((f"  by {entry['name']}", f"{snn}, ANN {ann}, ratio {total['ratio']:.3f}"))
    return rows


def comparison_rows(energy: dict[str, Any]) -> list[tuple[str, str]]:
    """What else could be run, in a sentence, and the published break-even."""
    return [
        ("  beside ANN and teacher", energy["comparison"]["verdict"]),
        ("  break-even", energy["break_even"]["says"]),
    ]


def onnx_rows(onnx: dict[str, Any]) -> list[tuple[str, str]]:
    """The ONNX models, by precision and form."""
    rows = []
    for precision, forms in onnx.items():
        if "unsupported" in forms:
            rows.append((f"ONNX {precision}", f"not expressible: {forms['unsupported']}"))
            continue
        for form, engines in forms.items():
            name = f"ONNX {precision}" if form == "unrolled" else f"ONNX {precision}, {form} form"
            verdicts = [verdict for verdict in engines.values() if verdict is not None]
            rows += [verdict_row(name, verdict) for verdict in verdicts[: 2 if form == "unrolled" else 1]]
    return rows


def exit_rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    """When images stop, and what it is worth."""
    rows = []
    for precision, found in about["exits"].items():
        chosen = next(row for row in found["table"] if row["threshold"] == found["threshold"])
        last = found["table"][-1]
        served = ", as served" if precision == about["precision"] else ""
        rows.append(
            (
                f"any-time, {precision}{served}",
                f"{percent(chosen['accuracy'])} in {chosen['mean_steps']:.2f} steps an image, "
                f"{joules(chosen['energy_J'])} at fp32 prices; "
                f"all {about['T']} steps {percent(last['accuracy'])} ({words(found)})",
            )
        )
    return rows


def netx_rows(netx: dict[str, Any]) -> list[tuple[str, str]]:
    """The .net file: whether it was verified, and what it is worth on the chip."""
    if "unsupported" in netx:
        return [("Loihi (netx)", f"not expressible: {netx['unsupported']}")]
    accuracy, mapping = netx["accuracy"], netx["mapping"]
    verified = ("Loihi (netx)", "written, not verified (--verify none)")
    if netx["verify"] is not None:
        verified = verdict_row("Loihi (netx)", netx["verify"])
    both = f"{percent(accuracy['integer'])} (float {percent(accuracy['float'])})"
    chips = f"{mapping['chips']} chip{'s' * (mapping['chips'] > 1)}"
    rows = [
        verified,
        ("  accuracy as integers", f"{both}, {accuracy['images']} images"),
        ("  place on the chip", f"{mapping['cores']} cores, {chips} {mapping['chip']} (a model of the placement)"),
    ]
    if netx["cost"]:
        cost = netx["cost"]["per_image"]
        energy = f"{joules(cost['energy_J'])} of operations at Loihi 1's prices"
        rows.append(("  an image (estimate)", f"{energy}, {cost['time_s'] * 1e3:.2f} ms in a stream"))
    return rows


def nir_rows(nir: dict[str, Any]) -> list[tuple[str, str]]:
    """The NIR file."""
    if "unsupported" in nir:
        return [("NIR", f"not expressible: {nir['unsupported']}")]
    return [verdict_row("NIR", nir["verify"])]


def training(origin: dict[str, Any]) -> str:
    """What trained a student, in words, from its provenance."""
    method = origin["config"]["method"]
    if method["name"] == ELSEWHERE:
        return "Trained elsewhere, taken over by TSERve"
    settings = ", ".join(f"{key} = {value}" for key, value in method.items() if key != "name")
    return (
        f"Method `{method['name']}` ({settings or 'no hyper-parameters'}), seed {origin['seed']}, on {origin['device']}"
    )


def neurons(net: Any) -> str:
    """The kind of neuron of a student, in words."""
    common = f"v_threshold = {net.v_threshold}, hard reset to {net.v_reset}"
    if net.neuron == "if":
        return f"IF (no leak), {common}"
    learnt = " at first, learnt by every layer" if net.neuron == "plif" else ""
    return f"{net.neuron.upper()} with tau = {net.tau}{learnt}, decay_input = {net.decay_input}, {common}"


def verdict_row(name: str, verdict: dict[str, Any]) -> tuple[str, str]:
    """One verification as a row."""
    return (
        name,
        f"{'ok' if verdict['ok'] else 'FAILED'} in {verdict['engine']}: {verdict['flips']} of {verdict['spikes']:,} "
        f"spikes differ, answers agree on {percent(verdict['argmax_agreement'])} of {verdict['images']} images",
    )


def summary_table(
    about: dict[str, Any], evaluation: dict[str, Any], energy: dict[str, Any], verification: dict[str, Any]
) -> str:
    """The rows as lines of text."""
    rows = summary_rows(about, evaluation, energy, verification)
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in rows)


def markdown_table(rows: list[tuple[str, str]]) -> str:
    """The rows as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {what.strip()} | {value} |" for what, value in rows)])


def card(
    checkpoint: Checkpoint,
    about: dict[str, Any],
    evaluation: dict[str, Any],
    energy: dict[str, Any],
    verification: dict[str, Any],
) -> str:
    """The model card in Markdown."""
    origin = checkpoint.provenance
    rows = summary_rows(about, evaluation, energy, verification)
    git = origin.get("git") or {}
    layers = "\n".join(
        f"| {layer['name']} | {layer['input']} | {layer['sops']:,.0f} | {layer['macs']:,.0f} | "
        f"{joules(layer['energy_J'])} | {joules(layer['ann_energy_J'])} |"
        for layer in energy["layers"]
    )
    conventions = "\n".join(
        f"- `{entry['name']}`: {entry['says']} {entry.get('verdict') or 'Left out: ' + entry['unavailable']}"
        for entry in energy["conventions"]
    )
    return f"""# {about["name"]}

A spiking neural network that classifies {evaluation["dataset"]} images of {about["input"]["channels"]} x \
{about["input"]["height"]} x {about["input"]["width"]} pixels in {about["T"]} time steps.
Every number below was written by TSERve from a measurement; none was typed by hand.

{markdown_table(rows)}

## Intended use and limits

The student knows {len(about["labels"])} classes ({", ".join(about["labels"][:12])}\
{", ..." if len(about["labels"]) > 12 else ""}) and answers one of them for any image. It was trained on \
{evaluation["dataset"]} alone and its accuracy holds for such images.

## How it was made

{training(origin)}, network `{checkpoint.net.name}`, {neurons(checkpoint.net)}.
Code: commit {git.get("commit", "unknown")}{" with local changes" if git.get("dirty") else ""}; \
{", ".join(f"{name} {version}" for name, version in origin["versions"].items())}.

## Energy

How much depends on what is counted; here are {len(energy["conventions"])} conventions, none of which is the truth.

{conventions}

{markdown(energy)}

The layers by `{energy["convention"]["name"]}`: {energy["convention"]["rules"]}

| layer | input | SOPs | MACs | energy | ANN |
|---|---|---|---|---|---|
{layers}
"""


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Summarise a bundle."""

    bundle: Annotated[Path, Positional]
    """The folder that `python -m export.bundle` wrote."""
    json: Path | None = None
    """Keep the figures, without the lists of files and samples, in this file."""


PARTS = ("bundle", "evaluate", "energy", "verify")


def figures(bundle: Path) -> dict[str, Any]:
    """All JSON files of a bundle as one. Raises ValueError where one is missing or damaged."""
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {platform.system()}"}
    for part in PARTS:
        try:
            found[part] = json.loads((bundle / f"{part}.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{bundle}: not a whole bundle, {part}.json cannot be read ({error})") from error
    found["bundle"] = {key: value for key, value in found["bundle"].items() if key not in ("files", "samples")}
    found["energy"]["conventions"] = [
        {key: value for key, value in entry.items() if key != "charges"} for entry in found["energy"]["conventions"]
    ]
    del found["evaluate"]["checkpoint"]  # a path of this machine; the sha256 stays
    return found


def command(argv: list[str]) -> None:
    """Parse, print the table, and write the figures if asked."""
    config = cli.parse(CardConfig, argv=argv, prog="python -m export.card", description=__doc__ or "")
    found = figures(config.bundle)
    print(markdown_table(summary_rows(*(found[part] for part in PARTS))))
    if config.json:
        write_json(config.json, found)
        print(f"\nwritten: {config.json}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
