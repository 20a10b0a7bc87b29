"""Recipes say what their comments promise, and no setting is without effect."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from train.cli import read_recipe
from train.config import RECIPES, DataConfig, DistillConfig, NetConfig, OptimConfig, RunConfig, TeacherConfig
from train.methods import METHODS
from train.networks import build


ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe(name: str) -> Any:
    """The config that a recipe makes, of the command that it is for."""
    base: RunConfig = TeacherConfig() if name.endswith("-teacher") else DistillConfig()
    variants = {} if name.endswith("-teacher") else {"method": METHODS}
    return read_recipe(base, name, recipe_dir=RECIPES, variants=variants)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_a_network_that_can_be_built_for_its_images(name: str) -> None:
    config = recipe(name)
    channels, size = (1, 8) if config.data.name == "digits" else (3, 32)
    with torch.device("meta"):
        build(dataclasses.replace(config.net, in_channels=channels, size=size))


def test_the_digits_recipe_is_the_defaults_of_the_command() -> None:
    assert recipe("digits") == DistillConfig()


def test_the_resnet18_recipe_reads_the_teacher_where_its_own_recipe_writes_it() -> None:
    student, teacher = recipe("cifar10-resnet18"), recipe("cifar10-resnet34-teacher")
    assert student.teacher == teacher.out / "teacher.pt"
    assert (student.data, teacher.net.spiking) == (teacher.data, False)
    first = (RECIPES / "cifar10-resnet18.toml").read_text()
    assert "python -m train.teacher cifar10-resnet34-teacher" in first


def test_the_paper_recipe_has_the_papers_settings() -> None:
    config = recipe("cifar10-resnet18")
    assert (config.net.name, config.net.T, config.method.name, config.method.temperature) == ("resnet18", 4, "tser", 5)
    assert (config.net.tau, config.net.decay_input, config.net.v_reset) == (2.0, True, 0.0)
    assert config.data.val_fraction == 0  # the paper trains on all images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nepoch = 3\n", "optim.epoch: unknown key 'epoch'; did you mean epochs"),
        ("[optimizer]\nepochs = 3\n", "unknown key 'optimizer'; did you mean optim"),
        ("[net]\nT = 'four'\n", "net.T: expected an integer, got 'four'"),
        ("[net]\nT = 65\n", "net.T must be in 1 to 64 time steps, got 65"),
        ("[method]\nname = 'tesr'\n", "method.name 'tesr'; did you mean tser"),
        ("[method]\nname = 'ce'\nalpha = 0.5\n", "method.alpha: unknown key 'alpha'"),
        ("[net\n", "recipe"),
    ],
)
def test_a_bad_recipe_is_refused_by_file_key_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_recipe(DistillConfig(), str(path), recipe_dir=RECIPES, variants={"method": METHODS})
    assert str(path) in str(caught.value)


def test_every_setting_is_read_by_some_code() -> None:
    read = {
        node.attr
        for path in (ROOT / "train").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        # A check of a setting's own range in config.py does not make it matter.
        and (path.name != "config.py" or path.parent.name != "train")
    }
    configs = [DataConfig, NetConfig, OptimConfig, DistillConfig, TeacherConfig, *map(type, METHODS.values())]
    settings = {field.name for config in configs for field in dataclasses.fields(config)}
    assert not settings - read
