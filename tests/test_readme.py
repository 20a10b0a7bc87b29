"""What README.md says is so: its figures come from the results file, its commands exist with the flags it uses."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from export.card import PARTS, markdown_table, summary_rows
from export.energy_view import markdown


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in README.splitlines() if line.startswith(("python -m ", "make "))}
)


def test_the_table_is_the_one_that_the_results_file_gives() -> None:
    found = json.loads((ROOT / "results/digits-vgg_small-tser-T4.json").read_text())
    assert markdown_table(summary_rows(*(found[part] for part in PARTS))) in README


def test_the_energies_are_those_of_the_results_file() -> None:
    report = json.loads((ROOT / "results/energy-cifar10-vgg_small-T4.json").read_text())
    table = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert "\n".join(table) in README
    assert report["comparison"]["verdict"] in " ".join(README.split())


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"`((?:train|export|hardware|serve|docs|results|\.ci)/[\w./-]*)`|\]\(((?!http)[^)]+)\)", README)
    paths = [code or link for code, link in named]
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_no_result_names_a_folder_of_the_machine_that_measured() -> None:
    results = sorted((ROOT / "results").glob("*.json"))
    assert len(results) > 20
    assert not [path.name for path in results if re.search(r"/(home|root|Users|work)/", path.read_text())]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python")])
def test_a_command_has_every_flag_that_is_shown(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    help_command = [sys.executable, "-m", module, "--help"]
    run = subprocess.run(help_command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for flag in (a for a in arguments if a.startswith("--")):
        assert flag in run.stdout
    recipes = [a for a in arguments if module.startswith("train.") and re.fullmatch(r"[\w-]+", a) and "10-" in a]
    assert not [r for r in recipes if not (ROOT / "train/recipes" / f"{r}.toml").is_file()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_a_make_target_exists(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
