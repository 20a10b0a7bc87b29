import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.cli import exit_status, from_dict, overlay, parse, to_dict
from train.config import DataConfig, NetConfig, OptimConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to distil."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """Without a teacher."""

    name: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Soft(Method):
    """With a teacher."""

    name: str = "soft"
    alpha: float = 0.5
    """Weight of the teacher."""
    temperature: float = 5.0
    """Of the softmax."""


VARIANTS = {"method": {"plain": Plain(), "soft": Soft()}}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run."""

    data: DataConfig = field(default_factory=DataConfig)
    net: NetConfig = field(default_factory=lambda: NetConfig(T=2))
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: Method = field(default_factory=Soft)
    seed: int = 0
    """Of all randomness."""
    resume: Literal["auto"] | Path | None = None
    """State to continue from."""
    betas: tuple[float, ...] = (0.9, 0.99)
    """Decays."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


RECIPES = {
    "tiny": '[data]\nname = "cifar10"\nlimit = 100\n[method]\nname = "soft"\nalpha = 0.25\n[optim]\nepochs = 3\n',
    "broken_key": "[data]\nnmae = 'cifar10'\n",
    "broken_type": "[data]\nlimit = 'many'\n",
    "broken_range": "[optim]\nepochs = 0\n",
    "broken_table": "data = 3\n",
    "broken_method": "[method]\nname = 'sotf'\n",
    "broken_toml": "[data\n",
}


@pytest.fixture(scope="module")
def recipe_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture
def run(recipe_dir):
    def parsed(*argv: str) -> Run:
        description = "Distil."
        return parse(Run, argv=argv, prog="prog", description=description, recipe_dir=recipe_dir, variants=VARIANTS)

    return parsed


def test_no_arguments_give_the_defaults(run):
    assert run() == Run()


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(run):
    config = run("tiny", "--data.limit", "7", "--optim.batch_size=32")
    assert config.data == DataConfig(name="cifar10", limit=7)
    assert config.optim == OptimConfig(epochs=3, batch_size=32)
    assert config.method == Soft(alpha=0.25)
    assert config.net.T == 2, "a default of the command, not of NetConfig"


def test_recipe_may_be_a_path(run, recipe_dir):
    assert run(str(recipe_dir / "tiny.toml")) == run("tiny")


@pytest.mark.parametrize("flags", [["--method.name", "plain"], ["--method.name=plain"]])
def test_named_method_brings_its_own_class_and_flags(run, flags):
    assert run(*flags).method == Plain()
    with pytest.raises(ValueError, match=r"--method\.alpha"):
        run(*flags, "--method.alpha", "1")


def test_last_method_name_counts(run):
    assert run("--method.name", "plain", "--method.name", "soft", "--method.alpha", "1").method == Soft(alpha=1.0)


def test_method_named_as_in_the_recipe_keeps_the_recipes_values(run):
    assert run("tiny", "--method.name", "soft").method == Soft(alpha=0.25)


def test_other_method_than_the_recipes_starts_from_its_defaults(run, recipe_dir):
    assert run("tiny", "--method.name", "plain").method == Plain()


@pytest.mark.parametrize(
    ("argv", "resume"),
    [
        (["--resume"], "auto"),
        (["--resume", "--seed", "1"], "auto"),
        (["--resume", "auto"], "auto"),
        (["--resume", "runs/a"], Path("runs/a")),
        (["--resume=runs/a"], Path("runs/a")),
        ([], None),
    ],
)
def test_bare_resume_means_auto(run, argv, resume):
    assert run(*argv).resume == resume


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["tni"], ["unknown recipe 'tni'", "did you mean tiny", "broken_key", ".toml"]),
        (["absent.toml"], ["absent.toml", "no such file"]),
        (["broken_key"], ["broken_key.toml", "data.nmae", "did you mean name", "val_fraction"]),
        (["broken_type"], ["broken_type.toml", "data.limit", "an integer or nothing", "'many'"]),
        (["broken_range"], ["broken_range.toml", "optim.epochs must be greater than 0"]),
        (["broken_table"], ["broken_table.toml", "data: expected a table"]),
        (["broken_method"], ["broken_method.toml", "method.name 'sotf'", "did you mean soft", "plain"]),
        (["broken_toml"], ["broken_toml.toml", "line 1"]),
        (["--method.name", "sotf"], ["--method.name 'sotf'", "did you mean soft", "plain"]),
        (["--optim.epochs", "0"], ["optim.epochs must be greater than 0, got 0"]),
        (["--seed", "-1"], ["seed must not be negative, got -1"]),
        (["--seed", "x"], ["--seed", "'x'", "--help"]),
        (["--net.surrogate", "relu"], ["relu", "atan", "sigmoid"]),
        (["--dta.name", "x"], ["--dta.name", "--data.name"]),
        (["--seed"], ["--seed", "Missing value"]),
        (["--seed", "1", "tiny"], ["tiny"]),
    ],
)
def test_bad_usage_says_what_is_wrong_and_what_is_allowed(run, argv, parts):
    with pytest.raises(ValueError, match=r".") as caught:
        run(*argv)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert message.isascii(), "no boxes around it"


def test_check_of_a_config_is_reported_as_it_was_written(run):
    with pytest.raises(ValueError, match=r"^data.val_fraction must be in \[0, 0.5\], got 0.9$"):
        run("--data.val_fraction", "0.9")


def test_help_shows_every_flag_recipes_and_methods(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    shown = capsys.readouterr().out
    assert not stop.value.code
    for table in (DataConfig, NetConfig, OptimConfig):
        prefix = {DataConfig: "data", NetConfig: "net", OptimConfig: "optim"}[table]
        decided = {"spiking", "in_channels", "size", "num_classes", "event"} if table is NetConfig else set()
        for name in table.__dataclass_fields__:  # what the command or the data set decides is no flag
            assert (f"--{prefix}.{name} " in shown or f"--{prefix}.{name}," in shown) == (name not in decided), name
    assert "prog [RECIPE]" in shown
    assert "tiny" in shown
    assert "plain, soft" in shown
    assert "Weight of the teacher." in shown


def test_command_without_recipes_takes_positional_arguments(tmp_path):
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Evaluate."""

        checkpoint: tyro.conf.Positional[Path]
        """What to evaluate."""
        samples: int = 16
        """How many images."""

    def run(*argv: str) -> Evaluate:
        return parse(Evaluate, argv=argv, prog="evaluate", description="Evaluate.")

    assert run("a.pt", "--samples", "3") == Evaluate(checkpoint=Path("a.pt"), samples=3)
    with pytest.raises(ValueError, match=r"(?i)missing"):
        run()


def test_torch_is_not_imported_for_the_command_line():
    code = """
import sys
from train.cli import parse
from train.config import DataConfig
parse(DataConfig, argv=[], prog="prog", description="Test.")
assert not {"torch", "numpy", "torchvision"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_usage_of_a_process_is_status_2_without_a_traceback():
    code = """
import sys
from train.cli import exit_status, parse
from train.config import DataConfig
sys.exit(exit_status(lambda: print(parse(DataConfig, argv=sys.argv[1:], prog="prog", description="Test.").name)))
"""
    runs = {
        flags: subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
        for flags in [("--name", "x"), ("--limit", "0"), ("--nmae", "x"), ("--help",)]
    }
    assert [done.returncode for done in runs.values()] == [0, 2, 2, 0]
    assert runs["--name", "x"].stdout == "x\n"
    assert runs["--limit", "0"].stderr == "error: data.limit must be greater than 0, got 0\n"
    assert runs["--nmae", "x"].stderr.startswith("error: Unrecognized options: --nmae")
    assert "Traceback" not in runs["--nmae", "x"].stderr


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (ValueError("data.limit is too large"), 2, "error: data.limit is too large\n"),
        (FileNotFoundError(2, "No such file", "a.pt"), 2, "error: [Errno 2] No such file: 'a.pt'\n"),
        (ImportError("pip install x"), 2, "error: pip install x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_of_the_user_are_one_line_and_a_status(error, status, printed, capsys):
    def command():
        raise error

    assert exit_status(command) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", printed)


def test_defects_pass_through():
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1)])
def test_status_of_a_finished_command_is_its_own(returned, status, capsys):
    assert exit_status(lambda: returned) == status
    assert capsys.readouterr() == ("", "")


def test_traceback_can_be_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("TSERVE_TRACEBACK", "1")
    assert exit_status(lambda: int("x")) == 2
    assert "Traceback" in capsys.readouterr().err


fractions = st.floats(0, 0.5)
weights = st.floats(0, 10)
runs = st.builds(
    Run,
    data=st.builds(
        DataConfig,
        name=st.text(),
        root=st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))).map(Path),
        limit=st.none() | st.integers(1),
        val_fraction=fractions,
        augment=st.booleans(),
    ),
    net=st.builds(
        NetConfig, T=st.integers(1, 64), tau=st.floats(1.01, 9), surrogate=st.sampled_from(["atan", "sigmoid"])
    ),
    method=st.just(Plain()) | st.builds(Soft, alpha=weights, temperature=weights),
    seed=st.integers(0),
    resume=st.none() | st.just("auto") | st.just(Path("runs/a")),
    betas=st.lists(weights).map(tuple),
)


@given(config=runs)
def test_config_survives_json(config):
    assert from_dict(Run, json.loads(json.dumps(to_dict(config))), variants=VARIANTS) == config


@given(config=runs, base=runs)
def test_complete_table_replaces_everything(config, base):
    assert overlay(base, to_dict(config), variants=VARIANTS) == config


def test_missing_keys_keep_the_defaults():
    assert from_dict(Run, {"net": {"tau": 3}}) == Run(net=NetConfig(T=2, tau=3.0))


def test_missing_key_without_default_is_named():
    with pytest.raises(ValueError, match="name is missing"):
        from_dict(Method, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": True}, "seed: expected an integer, got True"),
        ({"seed": 1.0}, "seed: expected an integer, got 1.0"),
        ({"data": {"augment": 1}}, "data.augment: expected true or false, got 1"),
        ({"data": {"root": 3}}, "data.root: expected a path, got 3"),
        ({"net": {"surrogate": "relu"}}, "net.surrogate: expected 'atan' or 'sigmoid' or .*, got 'relu'"),
        ({"net": {"tau": "2"}}, "net.tau: expected a number, got '2'"),
        ({"betas": [0.9, "x"]}, r"betas\[1\]: expected a number, got 'x'"),
        ({"betas": 0.9}, "betas: expected a list of any number of values, each a number, got 0.9"),
        ({"sede": 1}, "sede: unknown key 'sede'; did you mean seed"),
    ],
)
def test_wrong_types_are_named_with_what_is_expected(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Run, values)


def test_other_variant_does_not_inherit_the_bases_values():
    base = replace(Run(), method=Soft(alpha=0.1, temperature=2.0))
    same = overlay(base, {"method": {"name": "soft", "alpha": 0.3}}, variants=VARIANTS)
    other = overlay(base, {"method": {"name": "plain"}}, variants=VARIANTS)
    assert (same.method, other.method) == (Soft(alpha=0.3, temperature=2.0), Plain())
