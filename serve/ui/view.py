"""What the page answers: from the values of all its controls to the parts of it that change.

Nothing of a visitor is kept between two clicks: any of several worker processes may answer, and a page that was left
open overnight goes on after a restart.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from serve.batching import Overloaded
from serve.exits import Exit
from serve.models import UnknownModel
from serve.predictor import Predictor
from serve.spikes import Probe
from serve.ui import answer, chip, compare_tab, energy_tab, inputs, sketch, spike_figures, steps_tab, testset
from serve.ui.answer import sentence
from serve.ui.asked import Asked
from serve.ui.contenders import Contenders, split
from serve.ui.effects import Effects
from serve.ui.link import Link
from serve.ui.look import Look, Run, fitted


THRESHOLD_STEP = 1e-3
"""Of the slider. Half of it from the served threshold, it is the served one that is meant."""
PROBES = 3
ALONE = (
    "There is nothing to compare with: one network in one precision is served. Serve several bundles: "
    "TSERVE_BUNDLE=A,B bentoml serve, or python -m serve.demo A B."
)
RENEWED = "This network has been replaced at the server: the page shows the new one from here on."
KNOWN = (ValueError, UnknownModel, Overloaded)
"""What a page says in words: a bad image or setting, a bundle that cannot be read (BundleError), too much to do."""
FIGURES = ("probabilities", "rates", "sureness", "energy", "spikes", "energies", "compare")
"""Parts that show the image; without an image they are empty."""
Parts = dict[str, Any]
"""By the name of a component of the page, its new value."""


class View:
    """Answers the events of one page."""

    def __init__(self, contenders: Contenders, run: Run) -> None:
        """Show networks of `contenders`, whose images `run` runs."""
        self.contenders, self.run = contenders, run
        self._probes: dict[tuple[str, str], Probe] = {}

    def opened(self, search: str, asked: Asked, *, tab: str | None = None) -> Parts:
        """What a page shows when it opens: what the query of its address says, else the first sample; and this tab."""
        asked = replace(asked, shown="", source="sample:0", tab=tab or "steps")
        try:
            link = Link.read(dict(parse_qsl(str(search).removeprefix("?"))))
        except ValueError as error:
            return self.first_beside(asked, f"The address of this page cannot be shown: {error}.")
        names = self.contenders.names()
        network = next((name for name in names if fits(name, link)), None)
        if network is None:
            wanted = ", ".join(filter(None, (link.model, link.precision)))
            return self.first_beside(asked, f"This page has no network {wanted}; it has: {'; '.join(names)}.")
        told: Parts = {"noise": link.noise, "blur": link.blur, "contrast": link.contrast}
        told["tab"] = tab or ("spikes" if link.layer else "compare" if link.other else "steps")
        asked = replace(asked, **told, source=f"sample:{link.sample or 0}", network=network)
        asked = replace(asked, threshold=link.threshold, layer=link.layer, other=link.other)
        return told | {"tabs": gr.Tabs(selected=asked.tab)} | self.see(asked, keep=True)

    def first_beside(self, asked: Asked, words: str) -> Parts:
        """The first sample, under a sentence that says why it is not what the address asks for."""
        parts = self.see(asked)
        return {"tab": asked.tab} | parts | {"answer": answer.alert(words) + parts["answer"]}

    def see(self, asked: Asked, *, keep: bool = False) -> Parts:
        """The answer and the figures of the tab that is open.

        Where the controls are of another network than the one that answers now, they are renewed; with `keep`, those
        that are asked for stay.
        """
        parts: Parts = {}
        beside = ""
        asked = replace(asked, source=asked.source or "sample:0")
        try:
            name, predictor = self.contenders.get(asked.network or None)
        except KNOWN as error:
            return {"answer": answer.alert(sentence(error))}
        if asked.shown != identity(name, predictor):
            if not keep:
                asked = replace(asked, threshold=None, layer=None)
                beside = answer.alert(RENEWED) if asked.shown.endswith(f" {name}") else ""
            if not keep and asked.source.startswith("sample:") and asked.shown.split(" ")[0] != predictor.id:
                asked = replace(asked, source="sample:0")  # the pictures on the page are another bundle's
            asked, parts = self.renewed(asked, name, predictor)
        if asked.tab == "testset":
            parts["testset"] = guarded(lambda: self.stored_curves(asked, name, predictor))
        if asked.tab == "chip":
            parts["chip"] = guarded(lambda: chip.chip_tab(predictor.bundle))
        try:
            look = self.look(asked, name, predictor)
        except KNOWN as error:
            return dict.fromkeys(FIGURES, "") | parts | {"answer": answer.alert(sentence(error))}
        parts["answer"] = beside + answer.card(look, link=link_of(asked, look), tab=asked.tab)
        return parts | self.open_tab(asked, look)

    def look(self, asked: Asked, name: str, predictor: Predictor) -> Look:
        """The image that is asked for, through a network. Raises KNOWN."""
        picture = inputs.picture(
            predictor,
            source=asked.source,
            file=asked.file,
            camera=asked.camera,
            sketch=asked.sketch,
            effects=Effects(noise=asked.noise, blur=asked.blur, contrast=asked.contrast),
        )
        return Look(
            name=name,
            predictor=predictor,
            picture=picture,
            prediction=self.run(predictor, picture.image),
            exit=exit_of(predictor, asked.threshold),
        )

    def open_tab(self, asked: Asked, look: Look) -> Parts:
        """The figures of the image in the tab that is open."""
        match asked.tab:
            case "spikes":
                return {"spikes": guarded(lambda: self.spikes(look, asked.layer))}
            case "energy":
                return {"energies": energy_tab.by_layer(look)}
            case "compare":
                return self.comparison(asked, look)
            case "steps":
                return {
                    "probabilities": steps_tab.probabilities(look),
                    "rates": steps_tab.spike_rates(look),
                    "sureness": steps_tab.sureness(look),
                    "energy": energy_tab.summary(look),
                }
        return {}

    def spikes(self, look: Look, layer: str | None) -> str:
        """Maps and raster of a layer, by default the first. Raises KNOWN."""
        layers = look.about.lif_layers
        name = layers[0] if layer is None else layer
        if name not in layers:
            raise ValueError(f"this network has no layer {name!r}; it has {', '.join(layers)}")
        rates = look.prediction.spike_rates
        spikes = self.probe(look.predictor).run(look.picture.image, rates=rates)[name]
        figures = spike_figures.maps_figure(name, spikes) + spike_figures.raster_figure(name, spikes)
        return f'<div class="cards">{figures}</div>'

    def probe(self, predictor: Predictor) -> Probe:
        """A probe into a network; those that were made first are let go."""
        key = (predictor.id, predictor.precision)
        probe = self._probes.get(key) or Probe(predictor)
        if key not in self._probes:  # another thread may have put it there, or let it go: either is well
            self._probes = dict([*self._probes.items(), (key, probe)][-PROBES:])
        return probe

    def comparison(self, asked: Asked, look: Look) -> Parts:
        """Another network on the same image; the first that there is, where none is chosen."""
        others = [name for name in self.contenders.names() if name != look.name]
        if not others:
            return {"compare": answer.alert(ALONE), "other": gr.Dropdown([], value=None)}
        chosen = asked.other if asked.other and asked.other != look.name else others[0]
        drawn = guarded(lambda: compare_tab.tab(look, self.second(asked, look, chosen)))
        return {"compare": drawn, "other": gr.Dropdown(others, value=chosen)}

    def second(self, asked: Asked, look: Look, other: str) -> Look:
        """The same image through another network. Raises KNOWN."""
        name, predictor = self.contenders.get(other)
        picture = fitted(look.picture, predictor)
        threshold = asked.threshold if asked.threshold == 1 else None  # another network has a scale of its own
        return Look(
            name=name,
            predictor=predictor,
            picture=picture,
            prediction=self.run(predictor, picture.image),
            exit=exit_of(predictor, threshold),
        )

    def stored_curves(self, asked: Asked, name: str, predictor: Predictor) -> str:
        """The test set's curves of the network, and of the one that it is compared with. Raises KNOWN."""
        seen = [(name, predictor)]
        if asked.other and asked.other != name:
            seen.append(self.contenders.get(asked.other))
        return testset.testset_tab([(called, each.about, each.precision) for called, each in seen])

    def renewed(self, asked: Asked, name: str, predictor: Predictor) -> tuple[Asked, Parts]:
        """All that depends on the network and not on the image; what is asked for, with its defaults filled in."""
        about, names = predictor.about, self.contenders.names()
        layer = asked.layer or about.lif_layers[0]
        threshold = predictor.exit.threshold if asked.threshold is None else asked.threshold
        shown = identity(name, predictor)
        asked = replace(asked, network=name, layer=layer, threshold=threshold, shown=shown)
        return asked, {
            "head": answer.header(predictor),
            "stepper": answer.stepper(about.T),
            "network": gr.Dropdown(names, value=name, visible=len(names) > 1),
            "source": asked.source,
            "gallery": gr.Gallery(inputs.gallery(predictor), selected_index=number_of(asked, predictor)),
            "draw_tab": gr.Tab(visible=sketch.draws(about)),
            "threshold": gr.Slider(value=threshold, info=f"served: {predictor.exit.threshold:.4g}"),
            "layer": gr.Dropdown(list(about.lif_layers), value=layer),
            "shown": shown,
        }


def identity(name: str, predictor: Predictor) -> str:
    """Which network, of which bundle."""
    return f"{predictor.id} {predictor.precision} {name}"


def number_of(asked: Asked, predictor: Predictor) -> int | None:
    """Which sample is meant, if it is one."""
    samples = range(len(predictor.about.samples))
    return next((index for index in samples if asked.source == f"sample:{index}"), None)


def guarded(drawn: Callable[[], str]) -> str:
    """Figures, or the sentence that says why there are none."""
    try:
        return drawn()
    except KNOWN as error:
        return answer.alert(sentence(error))


def exit_of(predictor: Predictor, threshold: float | None) -> Exit:
    """The served exit with the page's threshold; the served one where the slider stands as near to it as it can.

    At its end the slider means what it says: all steps. Raises ValueError for what no slider can say.
    """
    served = predictor.exit
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"the exit threshold must be a number from 0 to 1, got {str(threshold)[:40]!r}")
    if threshold is None or (threshold != 1 and abs(threshold - served.threshold) <= THRESHOLD_STEP / 2):
        return served
    return replace(served, threshold=threshold)


def fits(name: str, link: Link) -> bool:
    """Whether a link means this network."""
    model, precision = split(name)
    return link.model in (None, model) and link.precision in (None, precision)


def link_of(asked: Asked, look: Look) -> str | None:
    """The query of an address that shows the same; None for a picture that others do not have."""
    number = number_of(asked, look.predictor)
    if number is None:
        return None
    model, precision = split(look.name)
    try:
        return Link(
            model=model,
            precision=precision,
            sample=number,
            noise=asked.noise,
            blur=asked.blur,
            contrast=asked.contrast,
            threshold=None if look.exit == look.predictor.exit else look.exit.threshold,
            layer=asked.layer if asked.tab == "spikes" else None,
            other=asked.other if asked.tab == "compare" else None,
        ).query()
    except ValueError:  # a name that no address can hold
        return None
