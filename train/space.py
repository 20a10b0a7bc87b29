"""What a sweep varies: one key of the configuration and the values that it may take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Space:
    """A range of numbers, or a list of values."""

    key: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    values: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Space:
        """KEY=low:high, KEY=low:high:log (whole numbers stay whole) or KEY=a,b,c. Raises ValueError with what is
        allowed."""
        key, _, given = text.partition("=")
        wrong = ValueError(f"space {text!r}: expected KEY=low:high, KEY=low:high:log or KEY=a,b,c")
        if not key or not given:
            raise wrong
        if ":" not in given:
            return cls(key=key, values=tuple(scalar(value) for value in given.split(",")))
        low, high, *scale = given.split(":")
        ends = scalar(low), scalar(high)
        if scale not in ([], ["log"]) or not all(type(end) in (int, float) for end in ends):
            raise wrong
        if not ends[0] < ends[1] or (scale and ends[0] <= 0):
            raise ValueError(f"space {text!r}: low must be below high{' and above 0' if scale else ''}")
        if type(ends[0]) is not type(ends[1]):
            ends = float(ends[0]), float(ends[1])
        return cls(key=key, low=ends[0], high=ends[1], log=bool(scale))

    def ends(self) -> tuple[Any, ...]:
        """Values that must all be allowed: the two ends, or the whole list."""
        return self.values or (self.low, self.high)

    def suggest(self, trial: optuna.Trial) -> Any:
        """A trial's value."""
        if self.values:
            return trial.suggest_categorical(self.key, self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def scalar(text: str) -> Any:
    """A number, true or false where the text is one (as in JSON), otherwise the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if type(value) in (int, float, bool) else text
