"""The models that are served: opened at start, renewed while requests are answered.

A bundle that is new or has changed is verified, opened and tried out beside the one that answers, and then takes its
place at once; a request that has the old one goes on with it. One that is broken is refused and the old one goes on.
Where bundles lie stands in serve.sources. The messages of this module's log name folders; UnknownModel, which a client
may see, does not.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve import bundle
from serve.bundle import BundleError
from serve.predictor import Predictor
from serve.session import Provider, trim
from serve.sources import Place, Stamp, finder, name_taken, unknown_default, young


Outcome = Literal["loaded", "swapped", "refused", "dropped"]
Key = tuple[int, str]
"""Of a slot: which source, and where."""
MISSING_S = 30.0
"""So long may a folder be gone before its model is."""
RETRY_S = 60.0
"""So long is a refused bundle left alone that does not change: what refused it may pass, as a full memory does."""
TRIES = 3
"""For a bundle that changes while it is opened."""
CLOSING_S = 10.0
logger = logging.getLogger(__name__)


class UnknownModel(LookupError):
    """A model that was asked for and is not served; the message names those that are."""

    def __init__(self, asked: str, there: Iterable[str]) -> None:
        super().__init__(f"no model is named {asked[:100]!r}; there are: {', '.join(there)}")


@dataclass(frozen=True, eq=False)
class Served:
    """A model as it is served now; whoever holds it may go on using it when it has been replaced."""

    name: str
    predictor: Predictor
    since: float
    """Unix time, in seconds."""


@dataclass(frozen=True, eq=False)
class _Now:
    """All models at one moment."""

    models: dict[str, Served]
    default: str


@dataclass(kw_only=True, eq=False)
class _Slot:
    """A place, what is served of it, and what was last seen there."""

    place: Place
    served: Served | None = None
    stamp: Stamp = ()
    again: float = -math.inf
    """When to look into the folder again even if it has not changed."""
    told: tuple[Stamp, str] | None = None
    """The refusal that stands in the log."""
    gone: float | None = None
    """Since when the folder is gone."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.served.name if self.served else self.place.name or self.place.where


class Models:
    """The models of one process. Any thread may ask; one at a time looks for changes."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        default: str | None = None,
        provider: Provider | None = None,
        on_change: Callable[[str, Outcome], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open every bundle of `sources` (serve.sources); `default` names the model of who names none, else the first.

        `on_change` is told each model's name and what became of it. Raises BundleError, or another ValueError, if a
        source gives no model that can be served, for instance as another has its name, or none is named `default`.
        """
        self._provider, self._clock = provider, clock
        self._on_change = on_change
        self._looking = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._finders = [finder(source) for source in sources]
        self._slots: dict[Key, _Slot] = {}
        self._untidy = True
        """Whether something was opened or closed since the last look."""
        for source, find in enumerate(self._finders):
            self._open_all(source, find())
        if not self._slots:
            raise ValueError("no bundle is named that could be served")
        served = {slot.name: slot for slot in self._slots.values() if slot.served}
        if default is not None and default not in served:
            raise unknown_default(default, served)
        self._wanted = default is not None
        """Whether the default was named: it is then never dropped, and no other model answers in its place."""
        self._first = next(iter(served.values())) if default is None else served[default]
        self._now = self._snapshot()
        for slot in served.values():
            self._tell(slot, None)

    def get(self, name: str | None = None) -> Served:
        """Give the model of this name, or the default one, as it is now; raises UnknownModel."""
        now = self._now
        try:
            return now.models[now.default if name is None else name]
        except KeyError:
            raise UnknownModel(str(name), now.models) from None

    def all(self) -> dict[str, Served]:
        """All models by name: as the sources come, and those of a folder by name."""
        return dict(self._now.models)

    @property
    def default(self) -> str:
        """The name of the model that answers who names none."""
        return self._now.default

    def look(self) -> None:
        """Look once for what is new, changed or gone, and serve accordingly; what happens is logged, nothing raises."""
        with self._looking:
            if self._untidy:  # by now the requests that had an old model are done
                trim()
                self._untidy = False
            for source, find in enumerate(self._finders):
                for place in find():
                    self._slots.setdefault((source, place.where), _Slot(place=place))
            for key, slot in sorted(self._slots.items()):
                try:
                    self._look_at(key, slot)
                except Exception:  # whatever it is, the others are looked at, and so is this one the next time
                    logger.exception("model %s: %s could not be looked at", slot.name, slot.place.where)

    def watch(self, every_s: float) -> None:
        """Look again and again in a thread of its own, `every_s` seconds apart; 0: never."""
        if every_s and self._thread is None:
            self._thread = threading.Thread(target=self._watch, args=(every_s,), name="serve.models", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop looking. What is served goes on being served."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSING_S)

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.look()

    # An exception that a variable keeps would keep itself, and a half-opened model, through the frames of its trace:
    # what refuses a bundle is raised, told where it is caught, and let go.

    def _open_all(self, source: int, places: list[Place]) -> None:
        """Open the bundles of a source at start; those that are refused are told, if there are others."""
        reasons: list[str] = []
        for place in places:
            slot = self._slots[source, place.where] = _Slot(place=place)
            try:
                self._renew(slot)
            except Exception as refusal:
                if len(places) == 1:
                    raise
                self._refuse(slot, refusal)
                reasons.append(str(refusal))
        if len(reasons) == len(places):
            raise BundleError(f"none of {len(places)} bundles can be served: {'; '.join(reasons)}")

    def _look_at(self, key: Key, slot: _Slot) -> None:
        _, stamp = slot.place.look()
        if not stamp:
            self._miss(key, slot)
            return
        if slot.gone is not None:
            logger.info("model %s: %s is there again", slot.name, slot.place.where)
            slot.gone = None
        if stamp == slot.stamp and self._clock() < slot.again:
            return
        before = slot.served
        try:
            self._renew(slot)
        except Exception as refusal:  # a bundle or a setting that cannot be, a library that fails
            if slot.stamp:  # else it is gone, which the next look sees
                self._refuse(slot, refusal)
            return
        slot.told = None
        if slot.served is not before:
            self._now = self._snapshot()
            self._tell(slot, before)

    def _renew(self, slot: _Slot) -> None:
        """Serve what lies at the slot's place; raises what refuses it, if something does."""
        for attempt in range(1, TRIES + 1):
            folder, slot.stamp = slot.place.look()  # before it is read: what changes since is seen the next time
            slot.again, self._untidy = -math.inf, True
            try:
                self._open(slot, folder)
            except Exception:
                if attempt == TRIES or slot.place.look()[1] == slot.stamp:
                    if not young(slot.stamp):
                        slot.again = self._clock() + RETRY_S
                    raise
            else:
                break
        if not young(slot.stamp):
            slot.again = math.inf

    def _open(self, slot: _Slot, folder: Path) -> None:
        read = bundle.read(folder)
        if slot.served is None or slot.served.predictor.id != read.id:
            name = self._free(slot.place.name or read.about.name, slot)
            slot.served = Served(name, Predictor(read, provider=self._provider), time.time())

    def _free(self, name: str, own: _Slot) -> str:
        """The name, if no other model has it."""
        for slot in self._slots.values():
            if slot is not own and slot.served and slot.served.name == name:
                raise name_taken(name, where=own.place.where, has=slot.place.where)
        return name

    def _miss(self, key: Key, slot: _Slot) -> None:
        """What lay there is gone: it is served on for a while, as an update may be under way."""
        now, where = self._clock(), slot.place.where
        if slot.served is None:
            del self._slots[key]  # it is found again when it comes back
        elif slot.gone is None:
            slot.gone, slot.stamp = now, ()
            logger.warning("model %s: %s is gone; bundle %s goes on", slot.name, where, slot.served.predictor.id)
        elif now - slot.gone >= MISSING_S and len(self._now.models) > 1 and not (self._wanted and slot is self._first):
            del self._slots[key]
            self._untidy = True
            default = self._now.default
            if slot is self._first:
                self._first = next(slot for _, slot in sorted(self._slots.items()) if slot.served)
            self._now = self._snapshot()
            facts = {"model": slot.name, "bundle": slot.served.predictor.id, "outcome": "dropped"}
            logger.warning("model %s: dropped, %s has been gone for %.0f s", slot.name, where, MISSING_S, extra=facts)
            if self._now.default != default:
                logger.warning("model %s: answers from now on who names no model", self._now.default)
            self._notify(slot.name, "dropped")

    def _refuse(self, slot: _Slot, refusal: Exception) -> None:
        reason = str(refusal)
        if slot.told == (slot.stamp, reason):
            return
        slot.told = slot.stamp, reason
        goes_on = f"; bundle {slot.served.predictor.id} goes on" if slot.served else ""
        trace = None if isinstance(refusal, ValueError) else refusal
        facts = {"model": slot.name, "outcome": "refused"}
        text = "model %s: the bundle in %s is refused%s: %s"
        logger.error(text, slot.name, slot.place.where, goes_on, reason, exc_info=trace, extra=facts)
        self._notify(slot.name, "refused")

    def _tell(self, slot: _Slot, before: Served | None) -> None:
        served = slot.served
        assert served is not None
        outcome: Outcome = "swapped" if before else "loaded"
        instead = f" instead of {before.predictor.id}" if before else ""
        facts = {"model": served.name, "bundle": served.predictor.id, "outcome": outcome}
        text = "model %s: bundle %s%s from %s"
        logger.info(text, served.name, served.predictor.id, instead, slot.place.where, extra=facts)
        self._notify(served.name, outcome)

    def _snapshot(self) -> _Now:
        served = [slot.served for _, slot in sorted(self._slots.items()) if slot.served]
        return _Now({each.name: each for each in served}, self._first.name)

    def _notify(self, name: str, outcome: Outcome) -> None:
        if self._on_change:
            try:
                self._on_change(name, outcome)
            except Exception:  # not ours; the models are as they are
                logger.exception("model %s: telling that it was %s failed", name, outcome)
