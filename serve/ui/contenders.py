"""The networks that the page can show or compare: every served model in every precision that its bundle has."""

import threading
from collections import OrderedDict

from serve.models import Models, UnknownModel
from serve.predictor import Predictor
from serve.session import Provider


KEPT = 3
"""Networks that are open beside those that are served."""


class Contenders:
    """Opens on demand what the server itself does not serve; any thread may ask."""

    def __init__(self, models: Models, *, provider: Provider | None = None) -> None:
        """Look into `models`, which may change meanwhile."""
        self._models, self._provider = models, provider
        self._opened: OrderedDict[tuple[str, str], Predictor] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What the page calls them, the one that answers by default first: "MODEL, PRECISION"."""
        first = self._models.default
        ordered = sorted(self._models.all().values(), key=lambda each: each.name != first)
        return [
            name_of(each.name, precision)
            for each in ordered
            for precision in sorted(each.predictor.about.models, key=lambda p: p != each.predictor.precision)
        ]

    def get(self, name: str | None = None) -> tuple[str, Predictor]:
        """Give a network and its name, by default the first; one that is not open yet is opened.

        Raises UnknownModel, and BundleError where its bundle has become unreadable.
        """
        if name is None:
            name = self.names()[0]
        for each in self._models.all().values():
            for precision in each.predictor.about.models:
                if name_of(each.name, precision) == name:
                    served = each.predictor
                    return name, served if precision == served.precision else self._open(served, precision)
        raise UnknownModel(name, self.names())

    def _open(self, served: Predictor, precision: str) -> Predictor:
        key = (served.id, precision)
        with self._lock:
            if key not in self._opened:
                chosen = next(p for p in served.about.models if p == precision)
                self._opened[key] = Predictor(served.bundle, provider=self._provider, precision=chosen)
            self._opened.move_to_end(key)
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
            return self._opened[key]


def name_of(model: str, precision: str) -> str:
    """What the page calls a network."""
    return f"{model}, {precision}"


def split(name: str) -> tuple[str, str]:
    """The model and the precision of a name."""
    model, _, precision = name.rpartition(", ")
    return model, precision
