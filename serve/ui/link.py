"""What a link to the page keeps: which model and image, how it is disturbed, and what is looked at.

An uploaded image is not in it: a link says what everybody can see again.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self
from urllib.parse import urlencode

from serve.ui.effects import BLUR, CONTRAST, NOISE, Effects


_NAME_CHARACTERS = 200
_INTEGER = re.compile("[0-9]{1,9}")  # ASCII only: int() takes the digits of every script


@dataclass(frozen=True, kw_only=True)
class Link:
    """The state of the page that a link carries; None: as the page has it by default. Raises ValueError for a value
    that no page could have; whether the model has such a sample, layer or step, only the model can say.
    """

    model: str | None = None
    """Name of a served model."""
    precision: str | None = None
    sample: int | None = None
    """Place in the list of samples, from 0."""
    noise: float = Effects.noise
    blur: float = Effects.blur
    contrast: float = Effects.contrast
    threshold: float | None = None
    """Of the early exit, in [0, 1]."""
    layer: str | None = None
    """The layer whose spikes are looked at."""
    other: str | None = None
    """What is compared with: another model, or a precision of this one."""
    t: int | None = None
    """The time step that is looked at, from 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:  # what is left out in a link needs no check
                parse, allowed = _RULES[field.name]
                _checked(field.name, str(value), parse, allowed)

    @classmethod
    def read(cls, params: Mapping[str, str]) -> Self:
        """Read the parameters of a URL; those that the page does not know are ignored.

        Raises ValueError, which names the parameter and what is allowed.
        """
        return cls(**{name: _checked(name, params[name], *rule) for name, rule in _RULES.items() if name in params})

    def query(self) -> str:
        """Give the URL's query, with no "?": what differs from the defaults, always in the same order; maybe empty."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return urlencode(
            {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}
        )


def _checked(name: str, text: str, parse: Callable[[str], Any], allowed: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        raise ValueError(f"the link's {name} must be {allowed}, got {text[:40]!r}") from None


def _name(text: str) -> str:
    if not 0 < len(text) <= _NAME_CHARACTERS or not text.isprintable():
        raise ValueError
    return text


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _INTEGER.fullmatch(text) or int(text) < least:
            raise ValueError
        return int(text)

    return parse


def _number(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and 0 <= value <= most):
            raise ValueError
        return value

    return parse


_TEXT = (_name, f"a name of 1 to {_NAME_CHARACTERS} printable characters")
_RULES: dict[str, tuple[Callable[[str], Any], str]] = {
    "model": _TEXT,
    "precision": _TEXT,
    "sample": (_whole(0), "a whole number from 0"),
    "noise": (_number(NOISE), f"a number from 0 to {NOISE:g}"),
    "blur": (_number(BLUR), f"a number from 0 to {BLUR:g}"),
    "contrast": (_number(CONTRAST), f"a number from 0 to {CONTRAST:g}"),
    "threshold": (_number(1), "a number from 0 to 1"),
    "layer": _TEXT,
    "other": _TEXT,
    "t": (_whole(1), "a whole number from 1"),
}
