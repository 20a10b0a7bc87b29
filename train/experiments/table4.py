"""TSER's Table 4 as it is printed, and its own arithmetic: do its energies follow from its counts?

Everything is decided from the printed digits alone. A printed number stands for every number that rounds to it, so an
energy contradicts its row only where no counts that round to the printed ones give an energy that does.
"""

from dataclasses import dataclass
from decimal import Decimal
from itertools import permutations
from typing import Any


# Joules (Horowitz 2014, 45 nm, fp32), as the paper takes them.
AC_J, MAC_J = Decimal("0.9e-12"), Decimal("4.6e-12")


@dataclass(frozen=True)
class Printed:
    """A number as it is printed."""

    digits: str
    unit: str
    """What one stands for, e.g. 1e6."""

    @property
    def value(self) -> Decimal:
        return Decimal(self.digits) * Decimal(self.unit)

    @property
    def half(self) -> Decimal:
        """Half a unit of the last digit."""
        return Decimal(self.unit).scaleb(-len(self.digits.partition(".")[2])) / 2

    def holds(self, low: Decimal, high: Decimal) -> bool:
        """Whether some number of [low, high] rounds to what is printed; both ends are given the benefit."""
        return low <= self.value + self.half and high >= self.value - self.half


@dataclass(frozen=True)
class Row:
    """A row of the table: ResNet-18 or VGG-16 on CIFAR-100 at T = 4, per image."""

    network: str
    method: str
    acs: Printed
    macs: Printed
    energy: Printed

    def energy_J(self) -> tuple[Decimal, Decimal, Decimal]:
        """The energy of the printed counts: the least and the largest that rounding allows around the middle one."""
        middle = AC_J * self.acs.value + MAC_J * self.macs.value
        off = AC_J * self.acs.half + MAC_J * self.macs.half
        return middle - off, middle, middle + off


def _row(network: str, method: str, acs: str, macs: str, energy: str) -> Row:
    return Row(network, method, Printed(acs, "1e6"), Printed(macs, "1e6"), Printed(energy, "1e-3"))


ROWS = (
    _row("resnet18", "Vanilla", "405.33", "12.2", "0.42"),
    _row("resnet18", "KDSNN", "411.49", "12.2", "0.43"),
    _row("resnet18", "LaSNN", "300.94", "12.2", "0.33"),
    _row("resnet18", "BKDSNN", "511.57", "12.2", "0.52"),
    _row("resnet18", "TSER", "405.98", "12.2", "0.42"),
    _row("vgg16", "Vanilla", "159.96", "274.2", "1.40"),
    _row("vgg16", "KDSNN", "170.79", "274.2", "1.39"),
    _row("vgg16", "LaSNN", "150.96", "274.2", "1.41"),
    _row("vgg16", "BKDSNN", "171.94", "274.2", "1.40"),
    _row("vgg16", "TSER", "160.92", "274.2", "1.41"),
)
# The columns OPs and MACs, which depend on the network alone.
COUNTED = {
    "resnet18": {"operations": Printed("2.23", "1e9"), "macs": Printed("12.2", "1e6")},
    "vgg16": {"operations": Printed("1.26", "1e9"), "macs": Printed("274.2", "1e6")},
}


def row_of(network: str, method: str) -> Row:
    """The row of a network and a method."""
    return next(row for row in ROWS if (row.network, row.method) == (network, method))


def agrees(row: Row) -> bool:
    """Whether the printed energy is that of the printed counts."""
    low, _, high = row.energy_J()
    return row.energy.holds(low, high)


def impossible(rows: tuple[Row, ...] = ROWS) -> list[tuple[Row, Row]]:
    """Pairs of one network of which the first has the smaller counts and the larger printed energy, whatever was
    rounded away."""
    return [
        (one, other)
        for one, other in permutations(rows, 2)
        if one.network == other.network
        and one.energy_J()[2] < other.energy_J()[0]
        and one.energy.value > other.energy.value
    ]


def content() -> dict[str, Any]:
    """The rows, and what their arithmetic says, as JSON types; joules."""
    return {
        "prices": {"ac_J": float(AC_J), "mac_J": float(MAC_J)},
        "rows": [
            {
                "network": row.network,
                "method": row.method,
                **{key: float(getattr(row, key).value) for key in ("acs", "macs")},
                "printed_J": float(row.energy.value),
                **dict(zip(("least_J", "computed_J", "most_J"), map(float, row.energy_J()), strict=True)),
                "agrees": agrees(row),
            }
            for row in ROWS
        ],
        "impossible": [
            {"network": one.network, "fewer_acs": one.method, "more_acs": other.method} for one, other in impossible()
        ],
    }
