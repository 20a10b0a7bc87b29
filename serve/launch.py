"""What happens before anything is served: settings and bundles are checked, and habits of what carries it are changed.

`bentoml serve` imports serve.service before it starts workers. Only there a wrong setting or bundle can end it with one
message: a worker that fails leaves traces and a server that waits for ever.
"""

import functools
import sys
from collections.abc import Iterable
from types import SimpleNamespace

import click
import gradio.queueing
import gradio.route_utils
import gradio.routes
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml._internal.utils import circus
from starlette.types import Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve import bundle, log, predictor
from serve.settings import Settings, read
from serve.sources import finder, name_taken, unknown_default
from serve.web import heads


CHECK_S = 1
"""Seconds between looks for workers that died; BentoML's own 10 would be 10 s without an answer."""


async def _straight_on(self: TimeoutMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    await self.app(scope, receive, send)


def prepare() -> Settings:
    """Read the settings, bound the heads of requests, and pass BentoML's time-out by; in `bentoml serve`, also check
    what is to be served, and see that dead workers are replaced soon.

    Ends the process with status 2 and one line where something cannot be. Other commands (`bentoml build`) and other
    importers need no bundle.
    """
    try:
        settings = read()
        command = click.get_current_context(silent=True)
        if command is not None and command.info_name == "serve":
            check(settings.bundles, settings.default_model)
            # BentoML has no setting for it; the default of this keyword is its own way in.
            circus.create_standalone_arbiter = functools.partial(circus.create_standalone_arbiter, check_delay=CHECK_S)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # BentoML, which has no setting for it, leaves the protocol to uvicorn, which takes what stands here under "auto".
    HTTP_PROTOCOLS["auto"] = functools.partial(heads.Protocol, timeout_s=settings.timeout_s)  # type: ignore[assignment]
    # The gate has the time-outs. BentoML's keeps 5 KB of each request until its time is over, answered or not, and
    # cannot be switched off.
    TimeoutMiddleware.__call__ = _straight_on  # type: ignore[method-assign]
    # Gradio prints the trace of what a click has met, past all loggers; these modules take nothing else from there.
    for module in (gradio.routes, gradio.route_utils, gradio.queueing):
        module.traceback = SimpleNamespace(print_exc=log.print_exc)  # type: ignore[attr-defined]
    return settings


def check(sources: Iterable[str], default: str | None = None) -> list[str]:
    """Give the names of the models that can be served with what the environment says; opens none.

    Raises BundleError, or another ValueError, if a source gives none, for instance as another has its name, or none is
    named `default`.
    """
    there: dict[str, str] = {}
    for source in sources:
        refusals: list[ValueError] = []
        places = finder(source)()
        for place in places:
            try:
                about = bundle.read(place.find()).about
                predictor.settings(about)
                name = place.name or about.name
                if name in there:
                    raise name_taken(name, where=place.where, has=there[name])
                there[name] = place.where
            except ValueError as error:
                refusals.append(error)
        if len(refusals) == len(places):
            raise refusals[0]
    if default is not None and default not in there:
        raise unknown_default(default, there)
    return list(there)
