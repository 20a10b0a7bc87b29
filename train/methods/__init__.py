"""The distillation methods by name, each with its default hyper-parameters.

Another setting of a method is `dataclasses.replace(METHODS["tser"], alpha=0.3)`.
"""

from train.methods.base import Method, Outputs
from train.methods.bkdsnn import BKDSNN
from train.methods.ce import CE
from train.methods.ckdsnn import CKDSNN
from train.methods.hta_kl import HTAKL
from train.methods.kdsnn import KDSNN
from train.methods.lasnn import LaSNN
from train.methods.meom import MEOM
from train.methods.seal import SeAl
from train.methods.skd import SKD
from train.methods.strong2weak import Strong2Weak
from train.methods.tet import TET
from train.methods.tser import TSER
from train.methods.tssd import TSSD
from train.methods.twd import TWD
from train.registry import Registry


__all__ = ["METHODS", "Method", "Outputs"]

LOGITS: tuple[Method, ...] = (CE(), SKD(), TSER(), TET(), TWD(), HTAKL(), Strong2Weak(), SeAl(), MEOM())
FEATURES: tuple[Method, ...] = (KDSNN(), LaSNN(), BKDSNN(), CKDSNN(), TSSD())
METHODS: Registry[Method] = Registry("method", {each.name: each for each in (*LOGITS, *FEATURES)}, of=Method)
