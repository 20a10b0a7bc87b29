"""torchvision, also beside a torch for which its compiled operators are missing.

Every Linux wheel of torchvision on PyPI is linked against CUDA. With a CPU-only torch its library does not load and
`import torchvision` stops at "operator torchvision::nms does not exist", although data sets, transforms and models
need no operator. Declaring the two that the import looks for is enough; calling them still fails. Where torchvision
imports by itself nothing is declared.
"""

import sys
from types import ModuleType
from typing import Any


_declared: list[Any] = []  # torch forgets a library's operators with the last reference to it


def import_torchvision() -> ModuleType:
    """Import torchvision; call this before anything else imports it."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        import torchvision
    module: ModuleType = torchvision
    return module


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
