"""Recipes say what their comments promise, and no setting is without effect."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from train import distill, evaluate, runs, teacher
from train.checkpoint import Checkpoint, Preprocess
from train.config import RECIPES, DataConfig, DistillConfig, NetConfig, OptimConfig, RunConfig, TeacherConfig
from train.data import DATASETS, Dataset, Split
from train.experiments.running import recipe_of
from train.methods import METHODS
from train.networks import build
from train.recipe import find, known


ROOT = Path(__file__).parents[2]
NAMES = list(known(RECIPES))


def recipe(name: str) -> Any:
    """The config that a recipe makes, of the command that it is for."""
    base: RunConfig = TeacherConfig() if name.endswith("-teacher") else DistillConfig()
    variants = {} if name.endswith("-teacher") else {"method": METHODS}
    return find(name, RECIPES).over(base, variants=variants)


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
        find(str(path), RECIPES).over(DistillConfig(), variants={"method": METHODS})
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


SHAPES = {"digits": (1, 8, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "folder": (3, 64, 5)}
SHAPES |= {"cifar10_dvs": (2, 48, 10), "dvs_gesture": (2, 48, 11)}


def stand_in(config: DataConfig) -> Dataset:
    """A data set of the asked one's shape: random images, two steps of four."""
    channels, size, classes = SHAPES[config.name]
    frames = config.frames if config.name in ("cifar10_dvs", "dvs_gesture") else None
    rng = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        shape = (n, channels, size, size) if frames is None else (n, frames, channels, size, size)
        return Split(
            images=torch.randint(256, shape, generator=rng, dtype=torch.uint8),
            labels=torch.randint(classes, (n,), generator=rng),
            indices=torch.arange(n),
        )

    return Dataset(
        name=config.name,
        train=split(8),
        val=split(0),
        test=split(4),
        classes=tuple(map(str, range(classes))),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        size=size,
        channels=channels,
        mirror=True,
        frames=frames,
        md5={},
    )


def put_in_place(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let `stand_in` be the data set of this name, which must not be there for that."""
    monkeypatch.delitem(DATASETS, name)
    monkeypatch.setitem(DATASETS, name, stand_in)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is but for the images, an eighth of the width, and a teacher that knows nothing."""
    monkeypatch.chdir(tmp_path)
    config = recipe(name)
    put_in_place(monkeypatch, config.data.name)
    dataset = stand_in(config.data)
    short = dataclasses.replace(config.optim, epochs=1, batch_size=4)
    net = dataclasses.replace(config.net, width=config.net.width / 8)
    config = dataclasses.replace(config, optim=short, net=net, out=tmp_path / "run")
    if isinstance(config, TeacherConfig):
        teacher.main(config)
        return
    if config.method.needs_teacher and config.teacher is not None:
        wide = recipe_of(config.teacher).net  # a recipe makes it
        wide = runs.fit_to(dataset, dataclasses.replace(wide, width=wide.width / 8, spiking=False, T=config.net.T))
        taught = Checkpoint(
            net=wide,
            weights=build(wide).state_dict(),
            preprocess=Preprocess(mean=dataset.mean, std=dataset.std, size=dataset.size),
            labels=dataset.classes,
        )
        taught.save(tmp_path / "teacher.pt")
        config = dataclasses.replace(config, teacher=tmp_path / "teacher.pt")
    distill.main(dataclasses.replace(config, teacher_epochs=1))
    (epoch,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert torch.tensor(list(epoch["loss"].values())).isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if find(name, RECIPES).paper.source])
def test_a_recipe_of_a_paper_says_which_settings_the_paper_gives(name: str) -> None:
    found = find(name, RECIPES)
    given, ours = set(found.paper.given), set(found.paper.ours)
    assert not given & ours
    marked = {"method.name", "teacher", "data.name"} | given | ours
    assert not found.keys() - marked, "a setting is marked neither as given nor as ours"
    assert ours <= found.keys() | {"teacher"}
    assert "arXiv" in found.paper.source


def test_every_distilled_cell_of_tables_1_and_2_has_its_recipe() -> None:
    cells = {name: find(name, RECIPES) for name in NAMES if name.startswith(("tser-table1/", "tser-table2/"))}
    students = {name: found for name, found in cells.items() if not name.endswith("-teacher")}
    assert len([name for name in students if name.startswith("tser-table1/")]) == 7 * 2 * 4
    assert len([name for name in students if name.startswith("tser-table2/")]) == 2 * 4
    unread = [name for name, found in students.items() if found.paper.accuracy is None]
    assert unread == ["tser-table1/cifar100-vgg11-T2-tser", "tser-table1/cifar100-vgg11-T4-tser"]
    for name, found in students.items():
        config = recipe(name)
        assert name.split("/")[1] in (
            f"{config.data.name}-{config.net.name}-T{config.net.T}-{config.method.name}",
            f"imagenet-{config.net.name}-T{config.net.T}-{config.method.name}",
        )
        assert recipe_of(config.teacher).net.spiking is False
        assert found.paper.teacher_accuracy is not None


def test_a_model_of_the_zoo_trains_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_in_place(monkeypatch, "cifar10")
    config = DistillConfig(
        data=DataConfig(name="cifar10"),
        net=NetConfig(name="sj:spikformer_cifar10", T=2),
        optim=OptimConfig(epochs=1, batch_size=4),
        method=METHODS["tet"],
        out=tmp_path / "run",
    )
    result = distill.main(config)
    assert len(result.accuracy_by_T) == 2
    report = evaluate.main(evaluate.EvaluateConfig(checkpoint=result.path))
    assert report["accuracy_by_T"] == result.accuracy_by_T
    assert len(report["firing_rates"]) > 10
    with pytest.raises(ValueError, match="zoo models are spiking only; take a teacher of another network"):
        distill.main(dataclasses.replace(config, method=METHODS["tser"], out=tmp_path / "other"))
