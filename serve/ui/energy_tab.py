"""The figures of energy: this image's, beside the ANN's, in every convention, whichever it favours."""

from html import escape

from serve.energy import Account
from serve.ui.look import Look
from serve.ui.svg import ANN, SNN, WIDTH, at, drawing, figure, name_width, rect, row_name, short, si, text


BAR = 9
"""Height of a bar."""
LAYER = 20
"""Characters of a layer's name; the last ones tell layers apart."""


def summary(look: Look, *, suffix: str = "") -> str:
    """For each convention two bars from zero, the SNN's up to the step that is looked at and the ANN's."""
    block, top, length = 52, 26, WIDTH - 90
    told = look.accounts
    counted = [account for account in told[-1] if account.unavailable is None]
    parts = [key(0, 8, "SNN", SNN), key(60, 8, "ANN of the same layers", ANN)]
    for i, account in enumerate(told[-1]):
        y = top + block * i
        parts.append(text(0, y + 12, short(account.title, 40)))
        if account.unavailable is not None:
            parts.append(text(WIDTH, y + 12, "cannot count this network", anchor="end"))
            continue
        most = max(account.energy_J, account.ann_energy_J) or 1.0
        parts.append(rect(0, y + 30, length * account.ann_energy_J / most, BAR, ANN))
        parts.append(text(WIDTH, y + 40, si(account.ann_energy_J, "J"), anchor="end", kind="small"))
        for t in range(1, look.T + 1):
            now = told[t - 1][i]
            drawn = rect(0, y + 17, length * now.energy_J / most, BAR, SNN)
            drawn += text(WIDTH, y + 26, si(now.energy_J, "J"), anchor="end", kind="small")
            drawn += text(length, y + 12, ratio(now.energy_J, now.ann_energy_J), anchor="end", kind="strong")
            parts.append(at(t, drawn))
    stop = told[look.steps - 1]
    alt = f"Energy of this image after {look.steps} steps, SNN and ANN: " + "; ".join(
        f"{account.title} {si(account.energy_J, 'J')} and {si(account.ann_energy_J, 'J')}"
        for account in stop
        if account.unavailable is None
    )
    body = drawing(WIDTH, top + block * len(told[-1]), "".join(parts), alt=f"{alt}.")
    data = {
        "steps_used": look.steps,
        "by_steps": [{account.convention: energies(account) for account in row} for row in told],
    }
    worse = [
        account.title for account in stop if account.unavailable is None and account.energy_J > account.ann_energy_J
    ]
    note = f"Up to the step that is looked at. {verdict(worse, len(counted), look.steps)} Each pair has its own scale."
    return figure(f"energy{suffix}", "Energy beside the ANN, in four conventions", body, data=data, note=escape(note))


def key(x: float, y: float, words: str, colour: str) -> str:
    """A sample of a bar with its name."""
    return rect(x, y - 7, 14, 9, colour) + text(x + 19, y + 2, words)


def verdict(worse: list[str], counted: int, steps: int) -> str:
    """Say whom the conventions favour where the image stops."""
    after = f"After {steps} step{'s' * (steps > 1)}, where it stops,"
    if not counted:
        return "No convention can count this network."
    if not worse:
        return f"{after} the SNN needs no more than the ANN in all of them."
    if len(worse) == counted:
        return f"{after} the SNN needs MORE than the ANN in all of them."
    return f"{after} the SNN needs MORE than the ANN by {' and '.join(worse)}."


def energies(account: Account) -> dict[str, object]:
    """One account's totals in plain numbers."""
    if account.unavailable is not None:
        return {"unavailable": account.unavailable}
    return {"energy_J": account.energy_J, "ann_energy_J": account.ann_energy_J}


def by_layer(look: Look) -> str:
    """A card for each convention: bars of every layer, and a sentence of what it counts."""
    return f'<div class="cards">{"".join(layers(look, i) for i in range(len(look.accounts[-1])))}</div>'


def layers(look: Look, convention: int) -> str:
    """Bars from zero for every layer, the SNN's up to the step that is looked at and the ANN's."""
    rows = [accounts[convention] for accounts in look.accounts]
    whole = rows[-1]
    id, title = f"energy-{whole.convention}", whole.title
    if whole.unavailable is not None:
        words = f"{whole.says} It cannot count this network: {whole.unavailable}."
        return figure(id, title, "", data=energies(whole), note=escape(words))
    left, right, row, top = name_width([layer.name for layer in whole.layers], LAYER), 70, 30, 26
    length = WIDTH - left - right
    most = max(max(layer.energy_J, layer.ann_energy_J) for layer in whole.layers) or 1.0
    parts = []
    for i, layer in enumerate(whole.layers):
        y = top + row * i
        parts.append(row_name(left - 8, y + 16, layer.name, characters=LAYER, tail=True))
        parts.append(rect(left, y + 14, length * layer.ann_energy_J / most, 9, ANN))
        parts.append(text(WIDTH, y + 24, si(layer.ann_energy_J, "J"), anchor="end", kind="small"))
        for t, account in enumerate(rows, 1):
            now = account.layers[i]
            words = f"{si(now.energy_J, 'J')}"
            told = f"{layer.name}, {t} steps: {now.acs:,.0f} additions, {now.macs:,.0f} multiplications"
            told += f", {now.accesses:,.0f} memory accesses" if now.accesses else ""
            bar = f"<g><title>{escape(told)}</title>{rect(left, y + 2, length * now.energy_J / most, 9, SNN)}</g>"
            parts.append(at(t, bar + text(WIDTH, y + 10, words, anchor="end", kind="small")))
    for t, account in enumerate(rows, 1):
        total = key(0, 10, f"SNN {si(account.energy_J, 'J')}", SNN) + key(
            130, 10, f"ANN {si(account.ann_energy_J, 'J')}", ANN
        )
        share = ratio(account.energy_J, account.ann_energy_J)
        parts.append(at(t, total + text(WIDTH, 12, share, anchor="end", kind="strong")))
    stop = rows[look.steps - 1]
    alt = (
        f"Energy by layer after {look.steps} steps, SNN and ANN: "
        + "; ".join(f"{each.name} {si(each.energy_J, 'J')} and {si(each.ann_energy_J, 'J')}" for each in stop.layers)
        + "."
    )
    body = drawing(WIDTH, top + row * len(whole.layers), "".join(parts), alt=alt)
    data = {
        "convention": whole.convention,
        "steps_used": look.steps,
        "by_steps": [
            {
                **energies(account),
                "layers": [
                    {
                        "name": layer.name,
                        "acs": layer.acs,
                        "macs": layer.macs,
                        "accesses": layer.accesses,
                        "energy_J": layer.energy_J,
                        "ann_energy_J": layer.ann_energy_J,
                    }
                    for layer in account.layers
                ],
            }
            for account in rows
        ],
    }
    return figure(id, title, body, data=data, note=escape(whole.says))


def ratio(snn_J: float, ann_J: float) -> str:
    """The SNN's part of the ANN's energy: "0.18 x", or "no ratio" where one of them is zero."""
    if snn_J <= 0 or ann_J <= 0:
        return "no ratio"
    return f"{snn_J / ann_J:.3g} ×"
