"""The top of the page: the picture, the answer at the step that is looked at, and what stopping early saves."""

import base64
import re
from html import escape

from serve import images
from serve.batching import Overloaded
from serve.predictor import Predictor
from serve.ui.look import Look
from serve.ui.svg import embedded, percent, si


FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:;,]+/)+")
"""Where on the server a file lies is nobody's business."""


def card(look: Look, *, link: str | None, tab: str) -> str:
    """The answer at every step, one of which is shown; `link` is the query of the page's permanent address, if any.

    Its attributes tell the page's script the steps and the exit, and what was asked for: an image, and an open tab.
    """
    here = look.picture
    pictures = [("the image as the network sees it", here.image)]
    if here.image is not here.clean:
        pictures.insert(0, ("the image before it was disturbed", here.clean))
    shown = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(images.encode(array)).decode()}" alt="{alt}" title="{alt}">'
        for alt, array in pictures
    )
    steps = "".join(at_step(look, t) for t in range(1, look.T + 1))
    told = {"steps": str(look.T), "exit": str(look.steps), "source": here.source, "tab": tab}
    if link is not None:
        told["link"] = link
    attributes = " ".join(f'data-{name}="{escape(value, quote=True)}"' for name, value in told.items())
    return (
        f'<section class="card answer" id="answer-card" aria-live="polite" {attributes}>'
        f'<div class="pictures">{shown}</div>'
        f'<div class="words">{steps}</div>{embedded(record(look))}</section>'
    )


def at_step(look: Look, t: int) -> str:
    """The answer after step t and what it means for the exit."""
    probability = float(look.running[t - 1].max())
    truth = look.picture.truth
    known = ""
    if truth is not None:
        kind, words = ("right", "✓ right") if truth == look.label(t) else ("wrong", f"✗ it is {truth}")
        known = f' <span class="{kind}">{escape(words)}</span>'
    return (
        f'<div class="at t{t}"><p class="headline"><span class="label">{escape(look.label(t))}</span> '
        f'<span class="confidence">{percent(probability)} confident</span>{known}</p>'
        f'<p class="sentence">{escape(of_exit(look, t))}</p><p class="quiet">{escape(runners_up(look, t))}</p></div>'
    )


def of_exit(look: Look, t: int) -> str:
    """Say what the exit makes of step t."""
    sure, asked = look.sureness[t - 1], look.exit.at(t)
    wanted = f"more than {asked:.3f} is asked for" if asked >= 0 else "that is enough by now"
    held = f"sureness {sure:.3f}, {wanted}"
    if t < look.steps:
        return f"After step {t} of {look.T} it is not sure enough ({held}) and goes on."
    if t > look.steps:
        since = f"{look.steps} step{'s' * (look.steps > 1)}"
        return f"Step {t} of {look.T} is for study: the network would have stopped after {since}."
    used, whole = look.up_to(t), look.prediction
    if t == look.T:
        return f"It has taken all {look.T} steps (sureness {sure:.3f}): {si(used.energy_J, 'J')}."
    saved = 1 - used.energy_J / whole.energy_J if whole.energy_J else 0.0
    return (
        f"After step {t} of {look.T} it is sure enough ({held}) and stops: {si(used.energy_J, 'J')} instead of "
        f"{si(whole.energy_J, 'J')}, {percent(saved)} saved."
    )


def runners_up(look: Look, t: int) -> str:
    """Say which classes come next."""
    probs = look.running[t - 1]
    best = (-probs).argsort(kind="stable")[1:4]
    if not len(best):
        return "There is no other class."
    return f"Next: {', '.join(f'{look.about.labels[k]} ({percent(probs[k])})' for k in best)}."


def record(look: Look) -> dict[str, object]:
    """The answer in plain numbers: after the exit, the same as /classify's."""
    stopped = look.up_to(look.steps)
    return {
        "network": look.name,
        "bundle": look.predictor.id,
        "precision": look.predictor.precision,
        "image": look.picture.name,
        "true_label": look.picture.truth,
        "label": look.label(look.steps),
        "probability": float(stopped.probs.max()),
        "steps_used": look.steps,
        "T": look.T,
        "exit": {"rule": look.exit.rule, "threshold": look.exit.threshold, "relax": look.exit.relax},
        "sops": stopped.sops,
        "macs": stopped.macs,
        "energy_J": stopped.energy_J,
        "energy_J_of_all_steps": look.prediction.energy_J,
        "latency_s_of_all_steps": look.prediction.latency_s,
    }


def stepper(T: int) -> str:
    """Buttons and a slider that choose the step that is looked at; page.js drives them."""
    return (
        '<div class="stepper" role="group" aria-label="Time step">'
        '<button type="button" id="back" aria-label="Previous step" title="Previous step (left arrow)">◀</button>'
        '<button type="button" id="play" aria-label="Play" title="Play or pause (space)">▶ Play</button>'
        '<button type="button" id="forward" aria-label="Next step" title="Next step (right arrow)">▶</button>'
        f'<input type="range" id="step-range" min="1" max="{T}" step="1" value="{T}" aria-label="Time step">'
        f'<output id="step-now" for="step-range" aria-live="off">step {T} of {T}</output></div>'
    )


def sentence(error: Exception | str) -> str:
    """What went wrong, as a sentence for whoever looks at the page."""
    words = FOLDERS.sub("", str(error))
    if isinstance(error, Overloaded):
        words = f"The network has too much to do ({words}): try again in {error.retry_after_s} s"
    if words.partition(" ")[0].isalpha():  # not the name of a file
        words = words[0].upper() + words[1:]
    return words if words.endswith((".", "?", "!")) else f"{words}."


def alert(words: str) -> str:
    """Say what went wrong."""
    return f'<div class="card alert" role="alert">{escape(words)}</div>'


def header(predictor: Predictor) -> str:
    """What is looked at, in a line, and what can be taken along."""
    about, precision = predictor.about, predictor.precision
    facts = (
        f"{about.name}: {len(about.lif_layers)} spiking layers, {about.T} time steps, {about.dataset}, "
        f"{percent(about.exits[precision].accuracy_by_T[-1])} of the test set right, {precision} on "
        f"{predictor.provider.removesuffix('ExecutionProvider')}"
    )
    return (
        f'<header class="page-head"><b>TSERve</b><span>{escape(facts)}</span><span class="tools">'
        '<button type="button" id="copy-link">Copy link</button>'
        '<button type="button" id="save-all">Save all as JSON</button></span></header>'
    )
