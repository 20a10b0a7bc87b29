"""SpikingJelly's data sets, also beside a torch for which torchaudio's library is missing.

Importing their package imports all of them, one of which needs torchaudio. Every wheel of torchaudio on PyPI is linked
against CUDA and does not load beside a CPU-only torch (as torchvision's, see train/torchvision_guard.py). The data sets
of images need nothing of it: a package of the same folder that imports nothing by itself stands in then.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from train.torchvision_guard import import_torchvision


PACKAGE = "spikingjelly.datasets"


def import_data_sets(name: str) -> ModuleType:
    """SpikingJelly's module of data sets called `name`."""
    import_torchvision()  # SpikingJelly imports it
    try:
        return import_module(f"{PACKAGE}.{name}")
    except OSError as error:
        if "torchaudio" not in str(error):
            raise
    stand_in = ModuleType(PACKAGE)
    spec = find_spec("spikingjelly")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    stand_in.__path__ = [f"{folder}/datasets" for folder in spec.submodule_search_locations]
    sys.modules[PACKAGE] = stand_in
    return import_module(f"{PACKAGE}.{name}")
