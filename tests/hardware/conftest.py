"""What the tests of the Lava side share."""

from pathlib import Path

import netmaker
import pytest

from hardware import netx


@pytest.fixture
def written(tmp_path: Path) -> Path:
    netx.write(netmaker.random_net(0), tmp_path / "a.net")
    return tmp_path / "a.net"
