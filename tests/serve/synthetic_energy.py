"""What the synthetic bundle says of energy: conventions with made-up coefficients, each kind of charge somewhere."""

from typing import Any


AC, MAC = 9e-13, 4.6e-12
STATIC = 8 * 8 * 9 * 4
DENSE = {"features.0.conv": STATIC, "features.1.conv": 8 * 8 * 9 * 4 * 6, "classifier": 6 * 4 * 4 * 4}


def energy() -> dict[str, Any]:
    """Prices, the counts that no image changes, and the conventions."""
    macs = sum(DENSE.values())
    counts = {"static_macs": STATIC, "ann_macs": macs, "ann_energy_J": macs * MAC}
    return {"chip": "cmos45nm", "ac_J": AC, "mac_J": MAC, **counts, "conventions": conventions()}


def conventions() -> list[dict[str, Any]]:
    """Four conventions, of which one cannot count this network."""
    stem, deep, last = DENSE
    return [
        _convention(
            "tser_compat",
            [
                _layer(stem, macs={"per_step": STATIC}),
                _layer("features.0.lif", lif=0, acs={"per_step": 256}, ann_energy_J=256 * MAC),
                _layer(deep, synapse=0, acs={"per_nonzero": 54.5}),
                _layer("pool", lif=1, acs={"per_spike": 1}, ann_energy_J=384 * MAC),
                _layer(last, synapse=1, macs={"per_step": 388}),
            ],
        ),
        _convention("bn_fused", unavailable="pool: reads what is not reported"),
        _convention(
            "event_exact",
            [
                _layer(stem, macs={"once": STATIC}),
                _layer(deep, synapse=0, acs={"per_tap": 6}),
                _layer(last, synapse=1, macs={"per_tap": 4}),
            ],
        ),
        _convention(
            "memory_aware",
            [
                _layer(stem, macs={"once": STATIC}, accesses={"once": 300, "per_step": 64}, access_J={"once": 3e-9}),
                _layer(
                    "features.0.lif",
                    lif=0,
                    macs={"per_step": 256},
                    accesses={"per_step": 512, "per_spike": 1},
                    access_J={"per_step": 2.5e-9, "per_spike": 2e-12},
                ),
                _layer(
                    deep,
                    synapse=0,
                    lif=1,
                    acs={"per_tap": 12, "per_step": 384},
                    macs={"per_nonzero": 2},
                    accesses={"per_tap": 18, "per_nonzero": 1, "per_spike": 1},
                    access_J={"per_tap": 4e-11, "per_nonzero": 1e-12, "per_spike": 2e-12},
                ),
            ],
            ac_J=1e-13,
            mac_J=3.2e-12,
        ),
    ]


def _layer(name: str, **charges: Any) -> dict[str, Any]:
    return {"name": name, "ann_energy_J": DENSE.get(name, 0) * MAC, **charges}


def _convention(name: str, layers: list[dict[str, Any]] | None = None, **other: Any) -> dict[str, Any]:
    words = {"title": f"Title of {name}", "says": f"It counts as {name} does.", "source": "nobody"}
    return {"name": name, **words, "ac_J": AC, "mac_J": MAC, "layers": layers or [], **other}
