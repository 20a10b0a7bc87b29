"""Recipes: settings as TOML files that can build on each other and say what they reproduce.

A recipe holds keys of the config of its command. Besides these it may hold `extends = "OTHER"`, the recipe (by its path
from this one, without .toml) over which it lies, and a table `[paper]`, which no run reads: what is reproduced, and
which of the settings the paper gives.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from train.errors import unknown
from train.schema import Variants, from_dict, overlay


Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What a recipe reproduces."""

    source: str = ""
    """Paper and table."""
    row: str = ""
    """The row, as the paper names it."""
    accuracy: float | None = None
    """Accuracy that the paper prints, in percent; nothing where it is not legible."""
    std: float | None = None
    """Its standard deviation, in percentage points."""
    teacher_accuracy: float | None = None
    """The teacher's accuracy that the paper prints, in percent."""
    given: tuple[str, ...] = ()
    """Settings of this recipe that the paper gives."""
    ours: tuple[str, ...] = ()
    """Settings of this recipe that the paper does not give."""
    note: str = ""
    """What a reader should know about the printed figure."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe with all that it extends: settings as JSON types by table, and what it reproduces."""

    path: Path
    settings: dict[str, Any]
    paper: Paper

    def over(self, base: Config, *, variants: Variants | None = None) -> Config:
        """`base` with the recipe over it. Raises ValueError for a bad key or value, with file, key, what is allowed."""
        try:
            return overlay(base, self.settings, variants=variants)
        except ValueError as error:
            raise ValueError(f"recipe {self.path}: {error}") from error

    def keys(self) -> set[str]:
        """The settings, as "table.key"."""
        return set(_keys(self.settings))


def known(folder: Path) -> dict[str, Path]:
    """The recipes in a folder and its subfolders, by their path from it without .toml; a name that starts with "_" is
    that of a part, which only other recipes extend."""
    paths = [path for path in sorted(folder.rglob("*.toml")) if not path.name.startswith("_")]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find(name: str, folder: Path) -> Recipe:
    """The recipe that a user names: one of `folder`, or a path that ends in .toml.

    Raises ValueError for an unknown one and for files that are no recipes.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ValueError(f"recipe {name}: there is no such file")
        return read(Path(name))
    if name not in (recipes := known(folder)):
        raise ValueError(f"{unknown('recipe', name, recipes)}; or give the path of a .toml file")
    return read(recipes[name])


def read(path: Path) -> Recipe:
    """A recipe and all that it extends. Raises ValueError with the file for what is wrong with it."""
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> Recipe:
    """above: the recipes that extend this one, which it must not extend in turn."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        base, paper = settings.pop("extends", None), settings.pop("paper", {})
        if not isinstance(base, str | None):
            raise ValueError(f"extends: expected the name of a recipe, got {base!r}")
        if not isinstance(paper, dict):
            raise ValueError(f"paper: expected a table of keys, got {paper!r}")
        if base is None:
            return Recipe(path=path, settings=settings, paper=from_dict(Paper, paper))
        found = (path.parent / f"{base}.toml").resolve()
        if not found.is_file():
            raise ValueError(f"extends {base!r}, but there is no file {found}")
        if found in (path.resolve(), *above):
            raise ValueError(f"extends {base!r}, which extends this recipe in turn")
    except ValueError as error:  # also what tomllib and UTF-8 raise
        raise ValueError(f"recipe {path}: {error}") from error
    below = _read(found, (path.resolve(), *above))
    try:
        own = overlay(replace(below.paper, given=(), ours=()), paper)
    except ValueError as error:
        raise ValueError(f"recipe {path}: paper.{error}") from error
    # A setting that is said again counts as the newer recipe says.
    given = {*below.paper.given} - {*own.ours} | {*own.given}
    ours = {*below.paper.ours} - {*own.given} | {*own.ours}
    own = replace(own, given=tuple(sorted(given)), ours=tuple(sorted(ours)))
    return Recipe(path=path, settings=_merged(below.settings, settings), paper=own)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one recipe over another's; another method takes over none of the settings of the one below."""
    merged = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            another = key == "method" and value.get("name", old.get("name")) != old.get("name")
            value = value if another else {**old, **value}
        merged[key] = value
    return merged


def _keys(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
