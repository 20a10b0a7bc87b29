"""What the tests of the Lava side share."""

from pathlib import Path

import netmaker
import pytest

from hardware import lava, netx


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what needs Lava where its venv is missing."""
    try:
        lava.python()
    except lava.LavaMissing as error:
        for item in items:
            if item.get_closest_marker("lava"):
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    netx.write(netmaker.random_net(0), tmp_path / "a.net")
    return tmp_path / "a.net"
