"""The page: its layout, and which event asks for what. What is answered stands in serve.ui.view."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from importlib import resources
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware

from serve.ui import answer, inputs, uploads
from serve.ui.asked import Asked
from serve.ui.contenders import Contenders
from serve.ui.effects import Effects
from serve.ui.guard import Guard
from serve.ui.look import Run
from serve.ui.view import THRESHOLD_STEP, Parts, View


TABS = {
    "steps": "Steps",
    "spikes": "Spikes",
    "energy": "Energy",
    "compare": "Compare",
    "testset": "Test set",
    "chip": "The chip",
}
MOST_STEPS = 128
"""Of a network whose figures can be played."""
ADDRESS = "(link, ...rest) => [location.search, ...rest]"
"""Brings the query of the page's address to the server."""
CHOSEN = "(link, ...rest) => [document.body.dataset.sample, ...rest]"
"""Brings the number of the picture that was chosen (page.js): Gradio forgets it of a click that has to wait."""
STYLES, SCRIPTS = ("page.css", "inputs.css"), ("page.js",)


class Page:
    """The components of one page, by name."""

    def __init__(self, blocks: gr.Blocks, view: View, notices: Sequence[str] = ()) -> None:
        """Build it inside `blocks`, which are open; `notices` are sentences that stand above everything."""
        head = gr.HTML(elem_id="head")
        if notices:
            gr.HTML("".join(answer.alert(answer.sentence(words)) for words in notices), elem_id="notices")
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=0, min_width=308, elem_id="left"):
                network = gr.Dropdown([], label="Network", elem_id="network", allow_custom_value=True)
                self.inputs = inputs.build()
            with gr.Column(scale=1, min_width=320, elem_id="right"):
                shown = {name: gr.HTML(elem_id=name) for name in ("answer", "stepper")}
                self.tabs, of_tabs = _tabs()
        hidden = {name: gr.Textbox(visible="hidden", elem_id=f"hidden-{name}") for name in ("tab", "shown", "link")}
        ours = {field.name: getattr(self.inputs, field.name) for field in fields(self.inputs)}
        self.parts: dict[str, Any] = ours | {"head": head, "network": network} | shown | of_tabs | hidden
        self.again = gr.Button(visible="hidden", elem_id="hidden-again")
        self.view = view
        self._wire(blocks)

    def _wire(self, blocks: gr.Blocks) -> None:
        ours, see = self.inputs, self.view.see
        self._on(blocks.load, lambda asked, search: self.view.opened(search, asked), ["link"], js=ADDRESS)
        self._on(ours.gallery.select, self._sample, ["link"], js=CHOSEN)
        for name in ("file", "camera", "sketch"):
            component = self.parts[name]
            chosen = component.upload if name == "file" else component.change
            self._on(chosen, self._image_from(name))
        for name in ("noise", "blur", "contrast", "threshold"):
            self._on(self.parts[name].input, see)
        for name in ("network", "layer", "other"):
            self._on(self.parts[name].input, see)
        self._on(self.again.click, see)  # page.js does, where an answer is to less than what has been asked meanwhile
        self._on(ours.file.clear, self._no_file)
        self._on(ours.reset.click, self._reset)
        for key, tab in self.tabs.items():
            self._on(tab.select, self._turn_to(key), ["link"], js=ADDRESS)

    def _on(
        self,
        event: Callable[..., Any],
        answered: Callable[..., Parts],
        more: Sequence[str] = (),
        **how: Any,
    ) -> None:
        """Answer an event by `answered(asked, *more values)`."""
        parts, count = self.parts, len(more)

        def named(told: Parts) -> dict[Any, Any]:
            return {parts[name]: value for name, value in told.items()}

        def plain(*values: Any) -> dict[Any, Any]:
            return named(answered(Asked.of(values[count:]), *values[:count]))

        event(
            plain,
            [parts[name] for name in (*more, *(field.name for field in fields(Asked)))],
            list(parts.values()),
            queue=False,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",  # of clicks in a row the last one counts; by default all but the first are lost
            **how,
        )

    def _image_from(self, source: str) -> Callable[[Asked], Parts]:
        def told() -> Parts:  # not made here, where it would become a part of the page
            return {"source": source, "gallery": gr.Gallery(selected_index=None)}

        return lambda asked: told() | self.view.see(replace(asked, source=source))

    def _turn_to(self, tab: str) -> Callable[[Asked, str], Parts]:
        def answered(asked: Asked, search: str) -> Parts:
            if asked.shown:
                return {"tab": tab} | self.view.see(replace(asked, tab=tab))
            # Not yet open. Gradio tells of the first tab by itself, beside the event that opens the page.
            return {"tab": tab} if tab == next(iter(TABS)) else self.view.opened(search, asked, tab=tab)

        return answered

    def _sample(self, asked: Asked, number: str) -> Parts:
        source = f"sample:{number}"
        return {"source": source, "file": None} | self.view.see(replace(asked, source=source))

    def _no_file(self, asked: Asked) -> Parts:
        return {"gallery": gr.Gallery(selected_index=0)} | self._sample(asked, "0")

    def _reset(self, asked: Asked) -> Parts:
        calm = asdict(Effects())
        return calm | self.view.see(replace(asked, **calm))


def _tabs() -> tuple[dict[str, gr.Tab], dict[str, Any]]:
    """The tabs by key; and what is in them, with the tabs' frame."""
    with gr.Tabs(elem_id="tabs") as frame:
        tabs = {key: gr.Tab(title, id=key, elem_id=f"tab-{key}") for key, title in TABS.items()}
    parts: dict[str, Any] = {"tabs": frame}
    with tabs["steps"], gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            parts |= {"probabilities": gr.HTML(), "rates": gr.HTML()}
        with gr.Column(min_width=300):
            parts["sureness"] = gr.HTML()
            label = "Exit threshold (1: all steps)"
            parts["threshold"] = inputs.slider(0, 1, 1, step=THRESHOLD_STEP, label=label, elem_id="threshold")
            parts["energy"] = gr.HTML()
    for key, menu, label, figures in (
        ("spikes", "layer", "Layer", "spikes"),
        ("energy", None, "", "energies"),
        ("compare", "other", "Compare with", "compare"),
        ("testset", None, "", "testset"),
        ("chip", None, "", "chip"),
    ):
        with tabs[key]:
            if menu:
                parts[menu] = gr.Dropdown([], label=label, elem_id=menu, allow_custom_value=True)
            parts[figures] = gr.HTML()
    return tabs, parts


def build(contenders: Contenders, run: Run, notices: Sequence[str] = ()) -> gr.Blocks:
    """Build the page; options() are what Gradio takes where it is shown. Raises OSError without a place for uploads."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder())
    title = f"TSERve: {contenders.get()[1].about.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(uploads.EVERY_S, uploads.KEPT_S)) as blocks:
        Page(blocks, View(contenders, run), notices)
    # Gradio asks whether a file that a browser names was uploaded only where it thinks that the page is shown; and it
    # fetches whatever address a browser names.
    blocks.has_launched = True
    processing_utils.async_ssrf_protected_download = _no_download
    return blocks


async def _no_download(url: str, cache_dir: str) -> NoReturn:
    raise ValueError("this page takes no addresses of files: choose a file")


def options(max_body: int) -> dict[str, Any]:
    """What Gradio 6 takes where a page is shown, not where it is built. Fonts are local: no request leaves."""
    ours = resources.files("serve.ui")
    styles = "".join((ours / name).read_text() for name in STYLES)
    scripts = "".join(f"<script>{(ours / name).read_text()}</script>" for name in SCRIPTS)
    return {
        "theme": gr.themes.Default(font=["Arial", "sans-serif"], font_mono=["monospace"]),
        "head": f"<style>{styles}{steps_css()}</style>{scripts}",
        "footer_links": [],
        "run_history": False,
        "max_file_size": max_body,
        "show_error": True,
        "app_kwargs": {"lifespan": uploads.swept, "middleware": [Middleware(Guard, max_body=max_body)]},
    }


def steps_css() -> str:
    """Which parts of a figure are there, and which are set off, at each step."""
    return "".join(
        f'body[data-t="{t}"] .at:not(.t{t}){{display:none}}body[data-t="{t}"] .mark.t{t} .frame{{stroke:var(--ink)}}'
        for t in range(1, MOST_STEPS + 1)
    )
