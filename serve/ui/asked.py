"""What a page asks for: the values of all its controls, as a browser sends them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from serve.ui.effects import Effects


NUMBERS = ("noise", "blur", "contrast", "threshold")
"""Controls whose value is a number; of all others it is a text."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The values of all controls, by default as before the page is open."""

    source: str = ""
    file: str | None = None
    camera: str | None = None
    sketch: str | None = None
    noise: float = Effects.noise
    blur: float = Effects.blur
    contrast: float = Effects.contrast
    network: str | None = None
    """One of Contenders.names()."""
    threshold: float | None = None
    layer: str | None = None
    other: str | None = None
    tab: str = ""
    shown: str = ""
    """The network whose samples, layers and threshold the controls show, as `identity` tells it."""

    @classmethod
    def of(cls, values: Sequence[Any]) -> Self:
        """The controls' values, in the order of the fields. They come from a browser and may be anything: what is not
        of its type becomes its default."""
        told = zip(fields(cls), values, strict=True)
        return cls(**{field.name: value for field, value in told if _fits(field.name, value)})


def _fits(control: str, value: Any) -> bool:
    """Whether a value is of its control's type."""
    return isinstance(value, int | float if control in NUMBERS else str) and not isinstance(value, bool)
