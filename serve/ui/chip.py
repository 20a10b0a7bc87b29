"""The tab "The chip": what the .net file for Loihi is, what was verified of it, what is only a model or an estimate."""

from html import escape

from serve.bundle import Bundle, BundleError
from serve.ui.answer import alert
from serve.ui.answer import sentence as said
from serve.ui.chip_figures import cores_figure, estimate, layers_figure
from serve.ui.chip_record import CHIP_NAMES, Report, VerdictRecord, read
from serve.ui.svg import si


RAN_IN = {
    "Lava's fixed-point simulator": "Verified in Lava's fixed-point simulator",
    "the numpy model of netx": "Run in our own simulator (the numpy model of netx), not in Lava",
}


def chip_tab(bundle: Bundle) -> str:
    """Cards about the bundle's .net; a sentence where it has none, or where its description cannot be read."""
    try:
        found = read(bundle)
    except BundleError as error:
        return alert(said(error))
    if isinstance(found, str):
        return (
            '<div class="card"><h3>No file for Loihi</h3>'
            f"<p>This network was not written for Loihi: {escape(found)}</p></div>"
        )
    cores, cost, proven = cores_figure(found), estimate(found), proofs(found)
    if found.mapping.chips == 1:
        return summary(found) + layers_figure(found) + f'<div class="cards">{cores}{cost}</div>{proven}'
    return summary(found) + layers_figure(found) + cores + f'<div class="cards">{cost}{proven}</div>'


def summary(report: Report) -> str:
    """What there is, in three sentences, and how it computes, in a quiet one."""
    mapping, accuracy = report.mapping, report.accuracy
    chip, each = known(mapping.chip), mapping.cores_per_chip
    place = (
        f"{mapping.cores:,} of the {each} cores of one {chip}"
        if mapping.chips == 1
        else f"{mapping.cores:,} cores on {mapping.chips:,} {chip} chips of {each} cores"
    )
    words = (
        f"As integers the network takes {place} (a model of the placement). {verified(report.verify)} Accuracy on "
        f"{accuracy.images:,} images ({accuracy.dataset}, {accuracy.split}): {share(accuracy.as_integers)} as "
        f"integers, {share(accuracy.as_float)} as floating-point numbers."
    )
    count = "1 time step counts" if report.T == 1 else f"{report.T} time steps count"
    how = (
        f"{report.file}: the image is {report.input.encoding} ({report.input.bits} bits). {count}; the chip resets "
        f"every {report.window}. Each layer reads the one before a step later, so a single image takes "
        f"{report.latency_steps} steps."
    )
    return (
        f'<div class="card" id="chip-summary"><h3>The network as a file for {escape(chip)}</h3>'
        f'<p>{escape(words)}</p><p class="quiet">{escape(how)}</p></div>'
    )


def verified(verdict: VerdictRecord | None) -> str:
    """Whether the file does what it should, in one sentence."""
    if verdict is None:
        return "Not verified: the file was written without a run."
    where = RAN_IN.get(verdict.engine, f"Run in {verdict.engine}")
    return (
        f"{'' if verdict.ok else 'FAILED. '}{where}: {verdict.flips:,} of {verdict.spikes:,} spikes differ on "
        f"{verdict.images:,} image{'s' * (verdict.images > 1)}."
    )


def proofs(report: Report) -> str:
    """What was verified and against what, what is proven of the number ranges, and what is only a model."""
    points = [("Spikes", comparison(report)), ("Accuracy", accuracies(report))]
    if report.risks:
        points += [("Not proven for every image", f"{risk.rstrip('.')}.") for risk in report.risks]
    else:
        points.append(
            (
                "Number ranges",
                f"No image can make a current wrap around or a membrane saturate within {report.T} "
                f"step{'s' * (report.T > 1)}: proven from the weights, by interval arithmetic.",
            )
        )
    points.append(("Not measured", "No run on a chip is recorded: cores are a model, energy and time estimates."))
    listed = "".join(f"<li><b>{escape(name)}.</b> {escape(words)}</li>" for name, words in points)
    sources = ""
    if report.cost is not None:
        told = (
            f"{name.replace('_', ' ')}, {known(fact.chip)}: {si(fact.value, fact.unit)} ({fact.status}). {fact.source}"
            for name, fact in report.cost.sources
        )
        rows = "".join(f"<li>{escape(words)}</li>" for words in told)
        sources = f'<details class="quiet"><summary>Sources of the estimate</summary><ul>{rows}</ul></details>'
    return f'<div class="card" id="chip-proofs"><h3>Proven, and not proven</h3><ul>{listed}</ul>{sources}</div>'


def comparison(report: Report) -> str:
    """What the run was held against."""
    verdict = report.verify
    if verdict is None:
        return verified(None)
    return (
        f"{verified(verdict)} Held against {verdict.reference}: every spike of {len(verdict.layers)} LIF "
        f"layer{'s' * (len(verdict.layers) > 1)} at every step, and every logit (largest difference "
        f"{verdict.max_logit_difference:g}). The rule: {verdict.rule}."
    )


def accuracies(report: Report) -> str:
    """On many images of the integer twin, on a few of the file itself."""
    accuracy, few = report.accuracy, report.accuracy_on_samples
    words = (
        f"On {accuracy.images:,} images the integer twin is right on {share(accuracy.as_integers)}, the floating-point "
        f"network on {share(accuracy.as_float)}."
    )
    if report.verify is not None and few.of_file is not None and few.as_float is not None:
        words += (
            f" On the {report.verify.images:,} images of the run the file itself is right on {share(few.of_file)}, the "
            f"floating-point network on {share(few.as_float)}."
        )
    return words


def known(chip: str) -> str:
    """loihi2 -> Loihi 2; a name that is not known stays."""
    return CHIP_NAMES.get(chip, chip)


def share(part: float) -> str:
    """Percent with two digits: 10,000 images tell that much apart."""
    return f"{100 * part:.2f} %"
