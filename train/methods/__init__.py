"""The distillation methods by name, each with its default hyper-parameters.

Another setting of a method is `dataclasses.replace(METHODS["tser"], alpha=0.3)`.
"""

from train.methods.base import Method, Outputs
from train.methods.ce import CE
from train.methods.skd import SKD
from train.methods.tser import TSER


__all__ = ["METHODS", "Method", "Outputs"]

METHODS: dict[str, Method] = {method.name: method for method in (CE(), SKD(), TSER())}
