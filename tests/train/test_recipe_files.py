"""Recipes that build on each other, and what is wrong with those that cannot."""

from pathlib import Path

import pytest

from train.recipe import Paper, find, known, read


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_lies_over_the_one_that_it_extends_table_by_table(tmp_path: Path) -> None:
    write(
        tmp_path,
        "_base",
        'seed = 1\n[net]\nT = 2\ntau = 3.0\n[optim]\nlr = 0.2\n[paper]\nsource = "here"\ngiven = ["net.T"]\n',
    )
    own = write(tmp_path, "deep/own", 'extends = "../_base"\n[net]\nT = 4\n[paper]\nrow = "own"\nours = ["net.T"]\n')
    found = read(own)
    assert found.settings == {"seed": 1, "net": {"T": 4, "tau": 3.0}, "optim": {"lr": 0.2}}
    assert found.keys() == {"seed", "net.T", "net.tau", "optim.lr"}
    assert found.paper == Paper(source="here", row="own", ours=("net.T",))  # what is said last counts
    assert list(known(tmp_path)) == ["deep/own"]  # a part is no recipe


def test_another_method_takes_nothing_over_from_the_one_below(tmp_path: Path) -> None:
    write(tmp_path, "below", '[method]\nname = "tser"\nentropy_weight = 0.1\n')
    other = write(tmp_path, "other", 'extends = "below"\n[method]\nname = "skd"\nalpha = 0.2\n')
    same = write(tmp_path, "same", 'extends = "below"\n[method]\nalpha = 0.2\n')
    assert read(other).settings["method"] == {"name": "skd", "alpha": 0.2}
    assert read(same).settings["method"] == {"name": "tser", "entropy_weight": 0.1, "alpha": 0.2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "nowhere"\n', "extends 'nowhere', but there is no file"),
        ('extends = "mine"\n', "extends 'mine', which extends this recipe in turn"),
        ('extends = "other"\n', "extends 'mine', which extends this recipe in turn"),
        ("extends = 3\n", "extends: expected the name of a recipe, got 3"),
        ("paper = 3\n", "paper: expected a table of keys, got 3"),
        ("[paper]\naccuraci = 3\n", "unknown key 'accuraci'; did you mean accuracy"),
        ('extends = "fine"\n[paper]\nrow = 3\n', "paper.row: expected a text, got 3"),
        ("[net\n", "mine.toml"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "other", 'extends = "mine"\n')
    write(tmp_path, "fine", "seed = 1\n")
    path = write(tmp_path, "mine", text)
    with pytest.raises(ValueError, match=r"recipe .*toml") as caught:
        read(path)
    assert message in str(caught.value)


def test_a_recipe_is_found_by_its_path_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "table/cell", "seed = 3\n")
    assert find("table/cell", tmp_path).settings == {"seed": 3}
    with pytest.raises(ValueError, match="unknown recipe 'table/cel'; did you mean table/cell"):
        find("table/cel", tmp_path)
    with pytest.raises(ValueError, match=r"recipe x\.toml: there is no such file"):
        find("x.toml", tmp_path)
