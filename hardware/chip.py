"""What is known about a chip: limits and energies, each number with its unit, its source and how it is known.

The numbers stand in `chips/NAME.toml`. A table that has a `value` is a fact; its key is its dotted path:

    [energy.ac_fp32]
    value = 0.9e-12
    unit = "J"
    source = "Horowitz, ISSCC 2014, ..."
    status = "published"
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any


CHIPS = Path(__file__).parent / "chips"

STATUSES = ("measured", "published", "assumed")
"""measured: by this project; published: in the named source; assumed: recalled or inferred, as the source says."""


class ChipError(ValueError):
    """An unknown chip or key, or a chip file that does not say what it must."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number in SI units ("J", "W", "s"), "bit", or "1" for a count; where it comes from and how it is known."""

    value: int | float
    unit: str
    source: str
    status: str

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ChipError(f"value is {self.value!r}, must be a number")
        for field in ("unit", "source", "status"):
            text = getattr(self, field)
            if not isinstance(text, str) or not text.strip():
                raise ChipError(f"{field} is {text!r}, must be a text that is not empty")
        if self.status not in STATUSES:
            raise ChipError(f"status is {self.status!r}, must be one of {', '.join(STATUSES)}")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip's facts by dotted key: `chip["energy.ac_fp32"].value`."""

    name: str
    title: str
    facts: Mapping[str, Fact]

    def __getitem__(self, key: str) -> Fact:
        if key not in self.facts:
            raise ChipError(f"chip {self.name} has no {key!r}; {_suggest(key, self.facts)}")
        return self.facts[key]

    def __contains__(self, key: object) -> bool:
        return key in self.facts

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)


def names() -> tuple[str, ...]:
    """The chips that `load` knows."""
    return tuple(sorted(path.stem for path in CHIPS.glob("*.toml")))


def load(name: str) -> Chip:
    """Read chips/NAME.toml. Raises ChipError for an unknown name or a malformed file."""
    if name not in names():
        raise ChipError(f"unknown chip {name!r}; {_suggest(name, names())}")
    return parse((CHIPS / f"{name}.toml").read_text(encoding="utf-8"), name=name)


def parse(text: str, *, name: str) -> Chip:
    """Build a Chip from TOML text. Raises ChipError that names the key at fault."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ChipError(f"chip {name}: not TOML: {error}") from error
    title = document.pop("title", None)
    if not isinstance(title, str):
        raise ChipError(f"chip {name}: title is {title!r}, must be a text")
    facts = dict(_facts(document, (), name))
    if not facts:
        raise ChipError(f"chip {name}: no facts; a fact is a table with value, unit, source and status")
    return Chip(name=name, title=title, facts=MappingProxyType(facts))


def _facts(table: Mapping[str, Any], path: tuple[str, ...], name: str) -> Iterator[tuple[str, Fact]]:
    """Every (dotted key, Fact) below a TOML table."""
    for key, entry in table.items():
        dotted = ".".join((*path, key))
        if not isinstance(entry, dict):
            raise ChipError(f"chip {name}: {dotted}: a bare {entry!r}; write a table with value, unit, source, status")
        if any(isinstance(child, dict) for child in entry.values()) or not entry:
            yield from _facts(entry, (*path, key), name)
            continue
        fields = set(Fact.__dataclass_fields__)
        if wrong := fields ^ set(entry):
            problem = ", ".join(f"{'missing' if field in fields else 'unknown'} {field}" for field in sorted(wrong))
            raise ChipError(f"chip {name}: {dotted}: {problem}; a fact has {', '.join(sorted(fields))}")
        try:
            yield dotted, Fact(**entry)
        except ChipError as error:
            raise ChipError(f"chip {name}: {dotted}: {error}") from error


def _suggest(wrong: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The nearest known names, or all of them when none is near."""
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
