"""Four ways to count the energy of a spiking network, side by side; each function's docstring is its printed rules.

Energy figures of spiking networks differ more by what is counted than by what is computed, so every figure names its
convention, and `export.energy` gives all of them. A convention takes a Graph, what the Graph no longer says of the
student (Origin, None where it is not known), and a chip's prices, and gives what every layer is charged
(export/conventions_terms.py). It raises CannotCount for a layer that it has no rule for.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from export.conventions_event import event_exact
from export.conventions_memory import SRAM, memory_aware
from export.conventions_terms import Charge, Origin
from export.conventions_tser import bn_fused, tser_compat
from export.graph import Graph
from hardware.chip import Chip


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A named way of counting."""

    name: str
    title: str
    says: str
    """What it counts, in one sentence for a reader who is new to this."""
    counting: str
    """The end of its verdict: an image costs ... , counting ..."""
    source: str
    blind_spots: tuple[str, ...]
    charges: Callable[[Graph, Origin | None, Chip], tuple[Charge, ...]]
    ac: str
    """The price of an accumulation: a key of hardware/chips."""
    mac: str
    memory: tuple[str, ...] = ()
    """Prices of memory accesses."""

    @property
    def rules(self) -> str:
        """What is counted, in full."""
        return inspect.getdoc(self.charges) or ""

    def prices(self) -> dict[str, str]:
        """All keys of prices, by a short name."""
        return {"ac": self.ac, "mac": self.mac, **{key.rpartition(".")[2]: key for key in self.memory}}


AC, MAC = "energy.ac_fp32", "energy.mac_fp32"
SYOPS = (
    "the code is syops-counter's bookkeeping (github.com/iCGY96/syops-counter), which gives the table's OPs and MACs"
)

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            name="tser_compat",
            title="As in TSER's Table 4",
            says="It counts as the paper's table does: every layer's operations times the rate of its input, with zero"
            " padding, separate batch normalisation, and the first layer anew at every step.",
            counting="counting operations as TSER's Table 4 does, and no memory access.",
            source=f"Yu et al., TSER (arXiv 2503.03144), Table 4; {SYOPS}",
            blind_spots=(
                "no memory access",
                "most MACs of a ResNet are batch normalisation, which a deployed network does not compute",
                "the first convolution is charged at every step, although its result does not change",
                "a value of an average or of a sum of spikes is multiplied even where it is zero",
                "taps in the zero padding are charged, and sums of branches are not",
            ),
            charges=tser_compat,
            ac=AC,
            mac=MAC,
        ),
        Convention(
            name="bn_fused",
            title="Table 4, normalisation folded",
            says="It counts as the paper's table does, but with batch normalisation folded into the convolutions, as"
            " in a network that is deployed.",
            counting="counting operations as TSER's Table 4 does, normalisation folded, and no memory access.",
            source=f"tser_compat with batch normalisation folded (this project); {SYOPS}",
            blind_spots=("those of tser_compat, but for batch normalisation",),
            charges=bn_fused,
            ac=AC,
            mac=MAC,
        ),
        Convention(
            name="event_exact",
            title="Exact events",
            says="It counts every synaptic operation that really happens, once, and nothing else: no updates of"
            " neurons and no memory.",
            counting="counting the arithmetic of synapses at the prices of {chip} and no memory access.",
            source="this project; NeuroBench counts the same synaptic operations, SpikingJelly those of spikes",
            blind_spots=(
                "no memory access, which on real chips costs more than arithmetic",
                "no neuron updates, biases, pooling or residual additions",
                "the ANN does not skip the zeros that ReLU makes",
            ),
            charges=event_exact,
            ac=AC,
            mac=MAC,
        ),
        Convention(
            name="memory_aware",
            title="With memory accesses",
            says="It counts operations, addresses, and every read and write of inputs, weights and membranes, at a"
            " price that grows with the memory that holds them.",
            counting="counting operations, addressing and memory accesses after Lemaire et al. 2022 at 32-bit integer"
            " prices of {chip}.",
            source="Lemaire et al., An Analytical Estimation of Spiking Neural Networks Energy Efficiency, ICONIP 2022"
            " (arXiv 2210.13107), as SpikingJelly's LemaireEnergyProfiler writes it down",
            blind_spots=(
                "one SRAM for each tensor and no reuse of what was read: a chip with caches or systolic arrays reads"
                " far less, in the ANN above all",
                "no DRAM: above 1 MiB an access costs no more",
                "no network on chip, no control, no leakage",
                "spikes wait in a memory as large as the layer, where the paper has queues of 1,000",
                "pooling and sums of branches are this project's rules, the paper has none",
            ),
            charges=memory_aware,
            ac="energy.ac_int32",
            mac="energy.mac_int32",
            memory=tuple(key for _, key in SRAM),
        ),
    )
}
