"""The figures of the tab "The chip": the layers of the .net, the cores that they take, what an image is to cost."""

from html import escape
from itertools import accumulate

from serve.ui.chip_record import LayerRecord, PlacementRecord, Report, Resource
from serve.ui.svg import ANN, SNN, THIRD, WIDTH, drawing, figure, line, rect, short, si, text


WIDE = 860
CHIPS = 12
"""How many chips are drawn."""
COLUMNS, SIDE = 16, 24
"""Of a chip's floor plan: squares in a row, and their size."""
FILLS = (SNN, ANN, THIRD, "#cc79a7", "#e69f00")
"""Of the layers in turn: Okabe and Ito's, drawn pale under the layer's number."""
PALE = ' fill-opacity="0.35"'
RESOURCES: dict[Resource, str] = {
    "neurons": "neurons",
    "synapse_words": "synapse memory",
    "input_axons": "input axons",
    "output_axons": "output axons",
}


def layers_figure(report: Report) -> str:
    """A row for each layer with its integers, its cores, and a bar of how full the fullest of them is."""
    top, row, bar, full = 48, 21, 612, 110
    ends = {"name": 28.0, "shape": 290.0, "neurons": 352.0, "weights": 432.0, "vThMant": 498.0, "vDecay": 552.0}
    heads = {"shape": "C \u00d7 H \u00d7 W", "cores": "cores", **{key: key for key in list(ends)[2:]}}
    ends["cores"] = 598.0
    height = top + row * len(report.layers) + 6
    parts = [text(20, top - 10, "#", anchor="end"), text(ends["name"], top - 10, "layer")]
    parts += [text(ends[key], top - 10, words, anchor="end") for key, words in heads.items()]
    parts += [text(bar, top - 26, "how full the fullest core is, and of what")]
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "middle")):
        x = bar + full * part
        parts.append(text(x, top - 10, f"{100 * part:.0f}{' %' * (part == 1)}", anchor=anchor))
        parts.append(line(x, top - 4, x, height - 2))
    for i, (layer, placed) in enumerate(zip(report.layers, report.mapping.layers, strict=True)):
        y = top + row * i + 15
        filled = placed.share[placed.limited_by]
        cells = {
            "shape": shape(layer),
            "neurons": f"{placed.neurons:,}",
            "weights": f"{layer.weights:,}",
            "vThMant": f"{layer.vThMant:,}",
            "vDecay": f"{layer.vDecay:,}",
            "cores": f"{placed.cores:,}",
        }
        shares = ", ".join(f"{fullness(part)} of the {RESOURCES[key]}" for key, part in placed.share.items())
        told_of = f"{layer.name}: {shares}"
        parts.append(
            f"<g><title>{escape(told_of)}</title>{text(20, y, str(i + 1), anchor='end')}"
            f"{text(ends['name'], y, short(layer.name, 30))}"
            f"{''.join(text(ends[key], y, words, anchor='end') for key, words in cells.items())}"
            f"{rect(bar, y - 11, max(full * filled, 0.5), 13, SNN)}"
            f"{text(bar + full + 8, y, f'{fullness(filled)} {RESOURCES[placed.limited_by]}')}</g>"
        )
    alt = "Layers of the file: " + "; ".join(
        f"{layer.name}, {shape(layer)}, {placed.neurons:,} neurons, {layer.weights:,} weights, "
        f"{placed.cores:,} core{'s' * (placed.cores > 1)}, {fullness(placed.share[placed.limited_by])} of the "
        f"{RESOURCES[placed.limited_by]} of the fullest"
        for layer, placed in zip(report.layers, report.mapping.layers, strict=True)
    )
    note = (
        "Weights: those that are not zero. A neuron fires above its threshold vThMant, in units of the weights, and "
        "its membrane loses vDecay / 4096 of itself at every step. The last layer only adds up: its threshold is out "
        "of reach. The bar shows what asks for the most cores; cores and fullness are a model of the placement."
    )
    data = [
        {**layer.model_dump(mode="json"), **placed.model_dump(mode="json")}
        for layer, placed in zip(report.layers, report.mapping.layers, strict=True)
    ]
    body = drawing(WIDE, height, "".join(parts), alt=alt)
    return figure("chip-layers", "Layers of the file", body, data={"layers": data}, note=note, wide=True)


def cores_figure(report: Report) -> str:
    """A floor plan of each chip, a square a core, with the number and the colour of its layer; the names below."""
    mapping = report.mapping
    drawn, wide = min(mapping.chips, CHIPS), mapping.chips > 1
    width, beside = (WIDE, 2) if wide else (WIDTH, 1)
    per = mapping.cores_per_chip
    each = SIDE * -(-per // COLUMNS) + 38
    stops = list(accumulate(layer.cores for layer in mapping.layers))
    starts = [0, *stops[:-1]]
    parts = []
    for k in range(drawn):
        x, y = 18.0 + (WIDE - WIDTH + 2) * (k % beside), 20.0 + each * (k // beside)
        first, used = per * k, min(mapping.cores - per * k, per)
        parts.append(text(x, y - 6, f"chip {k + 1}: {used} of {per} cores in use", kind="strong"))
        for i, (layer, start, stop) in enumerate(zip(mapping.layers, starts, stops, strict=True)):
            here = range(max(start - first, 0), min(stop - first, per))
            if here:
                squares = "".join(square(x, y, core, i) for core in here)
                parts.append(f"<g><title>{escape(told(i, layer))}</title>{squares}</g>")
        parts.append(unused(x, y, range(used, per)))
    below = 20 + each * -(-drawn // beside) - 24
    columns, row = (3, 19) if wide else (2, 19)
    lines = -(-len(mapping.layers) // columns)
    for i, layer in enumerate(mapping.layers):
        x, y = 18 + (width - 30) / columns * (i // lines), below + row * (i % lines)
        parts.append(
            f"<g><title>{escape(told(i, layer))}</title>"
            f"{rect(x, y, 22, 16, fill(i), more=PALE)}"
            f"{text(x + 11, y + 12, str(i + 1), anchor='middle', kind='strong')}"
            f"{text(x + 28, y + 12, f'{short(layer.name, 33 if wide else 17)}: {layer.cores:,}')}</g>"
        )
    alt = "Cores of each layer, in order: " + "; ".join(told(i, layer) for i, layer in enumerate(mapping.layers))
    note = (
        "A square is a core, its number the layer's; beside each name stands how many cores the layer takes. A model: "
        "cores are filled in the order of the layers, and the squares are not the places on the silicon. Intel's "
        "compiler is not public; for PilotNet it took 74 cores, where this model takes 65."
    )
    if drawn < mapping.chips:
        note += f" The first {drawn} of {mapping.chips:,} chips are drawn."
    data = {
        "chip": mapping.chip,
        "chips": mapping.chips,
        "cores_per_chip": per,
        "cores": mapping.cores,
        "layers": [
            {"number": i + 1, "name": layer.name, "first_core": start, "cores": layer.cores}
            for i, (layer, start) in enumerate(zip(mapping.layers, starts, strict=True))
        ],
    }
    body = drawing(width, below + row * lines + 2, "".join(parts), alt=alt)
    return figure("chip-cores", "Cores in use (a model)", body, data=data, note=note, wide=wide)


def square(x: float, y: float, core: int, layer: int) -> str:
    """A core of a plan at (x, y) with its layer's number."""
    left, top = x + SIDE * (core % COLUMNS), y + SIDE * (core // COLUMNS)
    number = text(left + SIDE / 2 - 1, top + SIDE / 2 + 3, str(layer + 1), anchor="middle", kind="strong small")
    return rect(left, top, SIDE - 2, SIDE - 2, fill(layer), more=PALE) + number


def unused(x: float, y: float, cores: range) -> str:
    """Empty squares, as one path."""
    side = SIDE - 2.5
    path = "".join(
        f"M{x + SIDE * (core % COLUMNS) + 0.25:g} {y + SIDE * (core // COLUMNS) + 0.25:g}h{side}v{side}h-{side}z"
        for core in cores
    )
    return f'<path d="{path}" fill="none" stroke="var(--line)"/>' if path else ""


def estimate(report: Report) -> str:
    """Bars of what an image is expected to cost, from zero, and how long it is expected to take."""
    if report.cost is None:
        return (
            '<div class="card" id="chip-estimate"><h3>Energy and time of an image</h3><p>Not estimated: operations are '
            "counted when the file is run, and it was written without a run.</p></div>"
        )
    image, sources = report.cost.per_image, report.cost.sources
    energies = {
        "synaptic operations": image.synops * sources.synaptic_operation.value,
        "neuron updates": image.updates * sources.neuron_update.value,
        "static power, a board": image.static_energy_J,
    }
    left, top, row, full = 134, 10, 26, 206
    most = max(energies.values()) or 1.0
    bars = "".join(
        text(left - 8, top + row * i + 14, name, anchor="end")
        + rect(left, top + row * i, max(full * joules / most, 0.5), 19, SNN if i < 2 else THIRD)
        + text(left + full * joules / most + 7, top + row * i + 14, si(joules, "J"), kind="strong")
        for i, (name, joules) in enumerate(energies.items())
    )
    step = si(sources.time_per_step.value, "s")
    facts = (
        f"{si(image.energy_J, 'J')} an image for synapses and neurons:",
        f"{image.synops:,.0f} synaptic operations, {image.updates:,.0f} neuron updates.",
        f"{si(image.time_s, 's')} an image in a stream ({image.steps} step{'s' * (image.steps > 1)} of {step}),",
        f"{si(image.latency_s, 's')} for a single one ({image.latency_steps} steps).",
    )
    below = top + 3 * row + 16
    lines = "".join(text(10, below + 19 * i, words) for i, words in enumerate(facts))
    alt = "Estimated: " + ", ".join(f"{name} {si(joules, 'J')}" for name, joules in energies.items())
    data = {
        "per_image": image.model_dump(mode="json"),
        "energy_J": energies,
        "sources": sources.model_dump(mode="json"),
    }
    body = drawing(WIDTH, below + 3 * 19 + 10, bars + lines, alt=f"{alt}. {' '.join(facts)}")
    note = sentence(report.cost.note)
    return figure("chip-estimate", "Energy and time of an image (an estimate)", body, data=data, note=escape(note))


def told(index: int, layer: PlacementRecord) -> str:
    """A layer's number, name and cores."""
    return f"layer {index + 1}, {layer.name}: {layer.cores:,} core{'s' * (layer.cores > 1)}"


def fill(layer: int) -> str:
    """A layer's colour."""
    return FILLS[layer % len(FILLS)]


def shape(layer: LayerRecord) -> str:
    """32 x 8 x 8."""
    return " \u00d7 ".join(f"{size}" for size in layer.shape)


def fullness(part: float) -> str:
    """Percent, without a "0.0 %" for what is little."""
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.1f} %" if part >= 0.0005 else "< 0.1 %"


def sentence(words: str) -> str:
    """A capital in front and a stop behind."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."
