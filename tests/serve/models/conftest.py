"""The versions, what they answer, and what is told of them."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from bundle_versions import IMAGES, VERSIONS, copy, write_version


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles that differ in their weights; tests copy them."""
    base = tmp_path_factory.mktemp("versions")
    return {name: write_version(base / name, seed, name) for seed, name in enumerate(VERSIONS, 20)}


@pytest.fixture(scope="session")
def answers(versions: dict[str, Path]) -> dict[str, np.ndarray]:
    """[T, B, K] of each version, by onnxruntime alone."""
    sessions = {name: ort.InferenceSession(folder / "model.onnx") for name, folder in versions.items()}
    return {name: session.run(["logits"], {"image": IMAGES})[0] for name, session in sessions.items()}


@pytest.fixture
def folder(tmp_path: Path, versions: dict[str, Path]) -> Path:
    """A copy of version one."""
    return copy(versions["one"], tmp_path / "served")


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log, also where the service has turned the way of its messages."""
    monkeypatch.setattr(logging.getLogger("serve"), "propagate", True)
    caplog.set_level("INFO", logger="serve.models")
    return caplog
