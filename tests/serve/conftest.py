"""The bundle that the tests serve, and the server itself, started once."""

from pathlib import Path

import pytest
from synthetic import write_bundle


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic bundle; tests must not change it."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
