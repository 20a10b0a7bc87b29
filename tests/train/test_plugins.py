"""What TSERVE_PLUGINS brings is as good as what is there: docs/own.py goes the whole way, and mistakes are named."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ended, start

from train import plugins
from train.checkpoint import Checkpoint, CheckpointError
from train.cli import exit_status
from train.config import NetConfig
from train.data import DATASETS
from train.methods import METHODS
from train.networks import NETWORKS, build
from train.registry import Registry


ROOT = Path(__file__).parents[2]
OWN = ROOT / "docs/own.py"
REGISTRIES: tuple[Registry[Any], ...] = (NETWORKS, METHODS, DATASETS)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins add in this process is taken away after the test."""
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.setattr(plugins, "_loaded", {})
    modules = set(sys.modules)
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("tserve_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a student of docs/own.py was distilled."""
    folder = tmp_path_factory.mktemp("own")
    names = ["--data.name", "parity", "--net.name", "separable", "--method.name", "mse", "--method.alpha", "0.25"]
    quick = ["--data.limit", "600", "--optim.epochs", "2", "--teacher_epochs", "1", "--optim.batch_size", "32"]
    assert command(folder, "train.distill", *names, *quick, "--out", "run") == 0, (folder / "log").read_text()
    return folder


def command(folder: Path, name: str, *flags: str, own: str = str(OWN)) -> int | None:
    process = start(name, flags, folder=folder, environment={plugins.VARIABLE: own}, log=folder / "log")
    return ended(process, seconds=120)[0]


def test_own_parts_are_recorded_by_name_and_file(folder: Path) -> None:
    recorded = json.loads((folder / "run/run.json").read_text())
    config = recorded["config"]
    assert [config[key]["name"] for key in ("data", "net", "method")] == ["parity", "separable", "mse"]
    assert config["method"]["alpha"] == 0.25
    assert list(recorded["plugins"]) == [str(OWN)]
    assert len(recorded["plugins"][str(OWN)]) == 64
    assert {"ce", "mse", "total"} == set(recorded["history"][0]["loss"])


@pytest.mark.parametrize(
    ("name", "flags", "written"),
    [
        ("export.to_onnx", (), "student.onnx"),
        ("export.to_loihi", ("--verify", "reference"), "student.net"),
        ("export.to_nir", (), "student.nir"),
        ("train.evaluate", (), "evaluate.json"),
    ],
)
def test_an_own_network_is_exported_and_verified(folder: Path, name: str, flags: tuple[str, ...], written: str) -> None:
    (folder / "log").write_text("")
    assert command(folder, name, "run/student.pt", *flags) == 0, (folder / "log").read_text()
    assert (folder / "run" / written).is_file()


def test_without_its_plugin_a_checkpoint_is_refused_and_says_what_is_missing(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unknown network 'separable'.* One of your own comes with TSERVE_PLUG"):
        Checkpoint.load(folder / "run/student.pt")


def test_its_own_step_is_fused(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.neurons import Norm, read_by_neurons

    monkeypatch.setenv(plugins.VARIABLE, str(OWN))
    plugins.load()
    network = build(NetConfig(name="separable"))
    ours = [module for module in network.modules() if isinstance(module, Norm)]
    assert len(ours) == 4
    assert read_by_neurons(network) == set(ours)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (4, 2, 10)


def test_a_module_is_a_plugin_too_and_is_loaded_once(
    apart: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from train.networks import NETWORKS\nNETWORKS['copied'] = NETWORKS['vgg_small']\n"
    (tmp_path / "lab_networks.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, f" lab_networks , {OWN},")
    for _ in range(2):
        assert exit_status(lambda: 0) == 0
    assert {"copied", "separable"} <= set(NETWORKS)
    assert list(plugins.loaded()) == ["lab_networks", str(OWN)]
    del sys.modules["lab_networks"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "plugin.py: no such file"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("x = 1\n1 / 0\n", "plugin.py, line 2: ZeroDivisionError: division by zero"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("NETWORKS['vgg11'] = print\n", "line 4: ValueError: network 'vgg11' is there already; give yours a name"),
        ("NETWORKS['../x'] = print\n", "network '../x': a name is letters, digits and underscores"),
        ("NETWORKS['mine'] = 3\n", "network 'mine' must be a function of its settings, got 3"),
        ("DATASETS['mine'] = None\n", "data set 'mine' must be a function of its settings, got None"),
        ("METHODS['mine'] = print\n", "method 'mine' must be an object of a Method, got <built-in function print>"),
        ("METHODS['mine'] = METHODS['tser']\n", "method 'mine' calls itself 'tser'"),
    ],
)
def test_a_plugin_that_fails_is_named_with_the_line(
    apart: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    said: str,
) -> None:
    imports = (
        "from train.data import DATASETS\nfrom train.methods import METHODS\nfrom train.networks import NETWORKS\n"
    )
    path = tmp_path / "plugin.py"
    if text is not None:
        path.write_text(imports + text if text[0].isupper() else text)
    monkeypatch.setenv(plugins.VARIABLE, str(path))
    called: list[int] = []
    assert exit_status(_noting(called)) == 2
    assert not called
    error = capsys.readouterr().err
    assert error.startswith(f"error: {plugins.VARIABLE}: {path}")
    assert said in error
    assert len(error.splitlines()) == 1


def _noting(called: list[int]) -> Callable[[], None]:
    return lambda: called.append(1)
