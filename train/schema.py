"""Frozen config dataclasses from and to JSON types: what recipes say and what checkpoints and run.json record."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from train.errors import OWN, unknown


Config = TypeVar("Config")
Variants = Mapping[str, Mapping[str, Any]]
"""For a field that holds one of several classes: their default instances by the `name` that each has as a field."""

SCALARS = {str: "a text", bool: "true or false", int: "an integer", float: "a number", type(None): "nothing"}


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON types: tables for dataclasses, texts for paths, lists for tuples."""
    return {field.name: _to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    assert type(value) in SCALARS, f"a config holds {value!r}, which JSON does not know"
    return value


def from_dict(config_type: type[Config], values: Mapping[str, Any], *, variants: Variants | None = None) -> Config:
    """The config that `to_dict` gave as `values`; keys that are not there keep their defaults.

    variants: fields whose class `values[field]["name"]` chooses.
    Raises ValueError for an unknown key (with the nearest), a wrong type, a value that the config refuses, or a
    missing one that has no default.
    """
    made: Config = _overlay(config_type, values, variants or {}, "")
    return made


def overlay(base: Config, values: Mapping[str, Any], *, variants: Variants | None = None) -> Config:
    """`base` with `values` laid over it, table by table.

    variants: fields whose class `values[field]["name"]` chooses; another name than base's starts from the defaults
    of the class that it names. Raises ValueError as `from_dict`.
    """
    made: Config = _overlay(base, values, variants or {}, "")
    return made


def _overlay(base: Any, values: Mapping[str, Any], variants: Variants, prefix: str) -> Any:
    """A config from `values` over `base`, a config or (for its defaults) a class; prefix: "data." in messages."""
    fresh = isinstance(base, type)
    hints = get_type_hints(base if fresh else type(base))
    fields = {field.name: field for field in dataclasses.fields(base)}
    converted = {}
    for key, value in values.items():
        where = f"{prefix}{key}"
        if key not in fields:
            raise ValueError(f"{where}: {unknown('key', key, fields)}")
        start = _default(fields[key], hints[key]) if fresh else getattr(base, key)
        if not dataclasses.is_dataclass(start):
            converted[key] = _convert(value, hints[key], where)
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a table of keys, got {value!r}")
        if key in variants and "name" in value:
            start = _variant(start, variants[key], value["name"], f"{where}.name")
        converted[key] = _overlay(start, value, {}, f"{where}.")
    if not fresh:
        return dataclasses.replace(base, **converted)
    for name, field in fields.items():
        if name not in converted and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return base(**converted)


def _default(field: dataclasses.Field[Any], hint: Any) -> Any:
    """A field's default; without one its type, so that tables of a field without default find their dataclass."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return hint if field.default is dataclasses.MISSING else field.default


def _variant(current: Any, registry: Mapping[str, Any], name: Any, where: str) -> Any:
    if name not in registry:
        raise unknown(where, str(name), registry, more=OWN)
    return current if getattr(current, "name", None) == name else registry[name]


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A JSON or TOML value as the type that a field is annotated with."""
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        origin, args = get_origin(option), get_args(option)
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and type(value) is int:
            return float(value)
        if option in SCALARS and type(value) is option:
            return value
        if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
            return value
        if origin is tuple and isinstance(value, list) and (args[-1] is ... or len(args) == len(value)):
            items = [args[0]] * len(value) if args[-1] is ... else args
            return tuple(_convert(item, items[i], f"{where}[{i}]") for i, item in enumerate(value))
    raise ValueError(f"{where}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    """A type in words for messages."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in args)
    if origin is tuple:
        length = "any number of values" if args[-1] is ... else f"{len(args)} values"
        return f"a list of {length}, each {_describe(args[0])}"
    if hint is Path:
        return "a path"
    assert hint in SCALARS, f"a config field is annotated {hint}, which recipes cannot express"
    return SCALARS[hint]
