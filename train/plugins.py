"""Networks, methods and data sets of your own: what TSERVE_PLUGINS names is imported before a command begins.

A plugin is a Python file, or a module by its dotted name; it adds entries to train.networks.NETWORKS,
train.methods.METHODS or train.data.DATASETS. Several are separated by commas. A checkpoint holds names and never code:
whoever opens one says, by this variable, whose code may run.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType


VARIABLE = "TSERVE_PLUGINS"

_loaded: dict[str, ModuleType] = {}


def load() -> None:
    """Import what TSERVE_PLUGINS names, once in a process. Raises ValueError for what is not there or fails."""
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        if name not in _loaded:
            _loaded[name] = _import(name)


def loaded() -> dict[str, str]:
    """The plugins of this process: what TSERVE_PLUGINS calls each, and the sha256 of its file."""
    return {name: _sha256(module) for name, module in _loaded.items()}


def _import(name: str) -> ModuleType:
    path = Path(name).expanduser()
    if path.suffix == ".py" and not path.is_file():
        raise ValueError(f"{VARIABLE}: {name}: no such file")
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        called = f"tserve_plugin_{len(_loaded)}_{path.stem}"
        spec = importlib.util.spec_from_file_location(called, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[called] = importlib.util.module_from_spec(spec)  # there, dataclasses look for their names
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's code raises
        raise _failed(path, error) from error
    return module


def _failed(path: Path, error: Exception) -> ValueError:
    """The error of a plugin, with the line of it that was reached last."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    return ValueError(f"{VARIABLE}: {where}: {type(error).__name__}: {error}")


def _sha256(module: ModuleType) -> str:
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest() if module.__file__ else ""
