"""What happens before anything is served: settings and bundles are checked, and two habits of BentoML's changed.

`bentoml serve` imports serve.service before it starts workers. Only there a wrong setting or bundle can end it with one
message: a worker that fails leaves traces and a server that waits for ever.
"""

import functools
import sys

import click
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml._internal.utils import circus
from starlette.types import Receive, Scope, Send

from serve import bundle, predictor
from serve.settings import Settings, read
from serve.sources import finder


CHECK_S = 1
"""Seconds between looks for workers that died; BentoML's own 10 would be 10 s without an answer."""


async def _straight_on(self: TimeoutMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    await self.app(scope, receive, send)


def prepare() -> Settings:
    """Read the settings and pass BentoML's time-out by; in `bentoml serve`, also check what is to be served, and see
    that dead workers are replaced soon.

    Ends the process with status 2 and one line where something cannot be. Other commands (`bentoml build`) and other
    importers need no bundle.
    """
    try:
        settings = read()
        command = click.get_current_context(silent=True)
        if command is not None and command.info_name == "serve":
            for source in settings.bundles:
                check(source)
            # BentoML has no setting for it; the default of this keyword is its own way in.
            circus.create_standalone_arbiter = functools.partial(circus.create_standalone_arbiter, check_delay=CHECK_S)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # The gate has the time-outs. BentoML's keeps 5 KB of each request until its time is over, answered or not, and
    # cannot be switched off.
    TimeoutMiddleware.__call__ = _straight_on  # type: ignore[method-assign]
    return settings


def check(source: str) -> None:
    """Raise BundleError, or another ValueError, unless a bundle of `source` can be served with what the environment
    says; opens no model."""
    refusals: list[ValueError] = []
    for place in finder(source)():
        try:
            predictor.settings(bundle.read(place.find()).about)
            return
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]
