"""The command line of every training command: an optional recipe, then flags over it. torch is not imported here."""

import contextlib
import dataclasses
import io
import re
import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from train import recipe
from train.errors import OWN, exit_status, unknown
from train.schema import Variants, from_dict, overlay, to_dict


__all__ = ["exit_status", "from_dict", "overlay", "parse", "to_dict", "unknown"]

Config = TypeVar("Config")

# A line of the boxes that tyro draws around its errors, and the colours that it uses on a terminal.
BOXED = re.compile(r"^[\u2502|] (.*?) *[\u2502|]$", re.MULTILINE)
RULE = re.compile(r"[\u2500-]+")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def parse(
    config_type: type[Config],
    *,
    argv: Sequence[str],
    prog: str,
    description: str,
    recipe_dir: Path | None = None,
    variants: Variants | None = None,
) -> Config:
    """The config that a command line asks for: the class's defaults, then the recipe, then the flags.

    argv: the arguments without the program's name: with `recipe_dir` first an optional RECIPE (the name of a TOML file
    in that folder, or a path that ends in .toml), then `--table.key value` flags. A bare `--resume` means
    `--resume auto`. variants: fields whose class `--FIELD.name` chooses, with the default instances by name; a name
    other than the recipe's starts from that class's defaults.
    `--help` prints and raises SystemExit(0). Raises ValueError with what is wrong for everything else.
    """
    import tyro  # not above: the commands that only need exit_status start without it

    variants = variants or {}
    arguments = _complete_resume(argv)
    default: Any = tyro.MISSING_NONPROP
    if recipe_dir is not None or variants:
        default = from_dict(config_type, {})
    if recipe_dir is not None:
        prog = f"{prog} [RECIPE]"
        description += (
            f"\n\nRecipes: {', '.join(recipe.known(recipe_dir)) or 'none here'}, or the path of a .toml file."
        )
        if arguments and not arguments[0].startswith("-"):
            default = recipe.find(arguments.pop(0), recipe_dir).over(default, variants=variants)
    for field, registry in variants.items():
        names = ", ".join(registry)
        description += f"\n\n--{field}.name: {names}. The other --{field} flags are those of the chosen one."
        default = _choose(default, field, registry, arguments)

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                config_type, default=default, args=arguments, prog=prog, description=description, use_underscores=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        error = _refusal(stop) or ValueError(_unboxed(printed.getvalue()))
    raise error


def _complete_resume(argv: Sequence[str]) -> list[str]:
    """The arguments with `auto` after every --resume that no value follows."""
    complete: list[str] = []
    for token, following in pairwise([*argv, "-"]):
        complete += [token, "auto"] if token == "--resume" and following.startswith("-") else [token]
    return complete


def _choose(config: Config, field: str, registry: Mapping[str, Any], arguments: Sequence[str]) -> Config:
    """`config` with the instance in `field` that the last `--FIELD.name X` or `--FIELD.name=X` asks for.

    tyro takes a field's flags from the class of its default instance, so this comes before tyro.
    """
    flag = f"--{field}.name"
    name = getattr(config, field).name
    for token, following in pairwise([*arguments, name]):
        if token == flag:
            name = following
        elif token.startswith(f"{flag}="):
            name = token.removeprefix(f"{flag}=")
    if name not in registry:
        raise unknown(flag, name, registry, more=OWN)
    if name == getattr(config, field).name:
        return config
    return dataclasses.replace(config, **{field: registry[name]})  # type: ignore[type-var]


def _refusal(stop: SystemExit) -> ValueError | None:
    """The ValueError of a config's own check behind tyro's exit: its message needs nothing around it."""
    error: BaseException | None = stop
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        if isinstance(error, ValueError) and any(frame.f_code.co_name == "__post_init__" for frame, _ in frames):
            return error
        error = error.__context__
    return None


def _unboxed(text: str) -> str:
    """tyro's error as plain lines, without the box around it."""
    lines = BOXED.findall(COLOUR.sub("", text))
    return "\n".join(line for line in lines if line and not RULE.fullmatch(line)) or text
