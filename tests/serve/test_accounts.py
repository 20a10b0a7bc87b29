"""The energy of one image in every convention: sums by hand, and the joules of the answer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import exact_images
from synthetic_energy import AC, MAC, STATIC

from serve.bundle import Description, read
from serve.energy import Account, accounts, energies_J
from serve.predictor import Predictor


TAPS = np.array([[100, 7], [50, 0], [9, 1]])
NONZERO = np.array([[20, 7], [10, 0], [2, 1]])
SPIKES = np.array([[20, 30], [10, 0], [2, 5]])
RATES = (SPIKES / [4 * 64, 6 * 64]).astype(np.float32)


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


def by_name(about: Description, steps: int) -> dict[str, Account]:
    found = accounts(about, taps=TAPS[:steps], nonzero=NONZERO[:steps], spike_rates=RATES[:steps])
    return {account.convention: account for account in found}


def test_conventions_stand_in_the_bundles_order_and_say_what_they_count(about: Description) -> None:
    found = accounts(about, taps=TAPS, nonzero=NONZERO, spike_rates=RATES)
    assert [account.convention for account in found] == ["tser_compat", "bn_fused", "event_exact", "memory_aware"]
    assert [account.says for account in found] == [convention.says for convention in about.energy.conventions]


def test_taps_and_once_an_image_are_charged(about: Description) -> None:
    account = by_name(about, 2)["event_exact"]
    assert [(layer.acs, layer.macs) for layer in account.layers] == [(0, STATIC), (150 * 6, 0), (0, 7 * 4)]
    assert account.layers[1].energy_J == pytest.approx(900 * AC, rel=1e-14)
    assert account.energy_J == 900 * AC + (STATIC + 28) * MAC
    assert account.ann_energy_J == pytest.approx((STATIC * 7 + 384) * MAC, rel=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_inputs_and_spikes_are_charged(about: Description, steps: int) -> None:
    account = by_name(about, steps)["tser_compat"]
    nonzero, spikes = NONZERO[:steps, 0].sum(), SPIKES[:steps, 1].sum()
    wanted = [(0, STATIC * steps), (256 * steps, 0), (54.5 * nonzero, 0), (spikes, 0), (0, 388 * steps)]
    assert [(layer.acs, layer.macs) for layer in account.layers] == wanted
    assert account.energy_J == pytest.approx(sum(layer.energy_J for layer in account.layers), rel=1e-14)


def test_memory_has_joules_of_its_own(about: Description) -> None:
    stem, lif, deep = by_name(about, 2)["memory_aware"].layers
    assert stem.accesses == 300 + 2 * 64
    assert stem.energy_J == pytest.approx(STATIC * 3.2e-12 + 3e-9, rel=1e-14)
    assert lif.accesses == 2 * 512 + 30
    assert lif.energy_J == pytest.approx(512 * 3.2e-12 + 5e-9 + 30 * 2e-12, rel=1e-14)
    assert deep.accesses == 150 * 18 + 30 + 30
    spent = 150 * 4e-11 + 30 * 1e-12 + 30 * 2e-12
    assert deep.energy_J == pytest.approx((150 * 12 + 768) * 1e-13 + 60 * 3.2e-12 + spent, rel=1e-14)


def test_a_convention_that_cannot_count_says_why_and_gives_no_number(about: Description) -> None:
    account = by_name(about, 3)["bn_fused"]
    assert account.unavailable == "pool: reads what is not reported"
    assert (account.layers, account.energy_J, account.ann_energy_J) == ((), 0, 0)
    assert by_name(about, 3)["event_exact"].unavailable is None


@given(seed=st.integers(0, 1000), threshold=st.sampled_from([0.3, 0.5, 1.0]))
def test_the_answers_joules_are_those_of_event_exact_to_the_last_bit(
    predictor: Predictor, seed: int, threshold: float
) -> None:
    for seen in predictor.predict(exact_images(4, seed), exit_threshold=threshold):
        found = accounts(predictor.about, taps=seen.taps, nonzero=seen.nonzero, spike_rates=seen.spike_rates)
        (exact,) = (account for account in found if account.convention == "event_exact")
        assert exact.energy_J == seen.energy_J
        assert (sum(x.acs for x in exact.layers), sum(x.macs for x in exact.layers)) == (seen.sops, seen.macs)
        assert seen.taps.dtype == seen.nonzero.dtype == np.int64
        totals = energies_J(predictor.about, taps=seen.taps, nonzero=seen.nonzero, spike_rates=seen.spike_rates)
        wanted = {each.convention: (each.energy_J, each.ann_energy_J) for each in found if not each.unavailable}
        assert totals.keys() == wanted.keys()
        for name, joules in wanted.items():
            assert totals[name] == pytest.approx(joules, rel=1e-12)
        np.testing.assert_array_equal(seen.taps[:, 1], seen.nonzero[:, 1])  # a dense layer has a tap for every input
        np.testing.assert_array_equal(seen.nonzero[:, 0], np.rint(256 * seen.spike_rates[:, 0]))  # it reads lif1


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor(bundle_dir)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"taps": TAPS[:, :1]}, r"taps is \[3, 1\], expected \[t, 2\]"),
        ({"nonzero": NONZERO[:2]}, r"nonzero is \[2, 2\], expected \[t, 2\] with the same t"),
        ({"spike_rates": RATES[:, :1]}, r"spike_rates is \[3, 1\]"),
        ({"taps": TAPS[:0], "nonzero": NONZERO[:0], "spike_rates": RATES[:0]}, r"taps is \[0, 2\].* t >= 1"),
    ],
)
def test_arrays_of_another_network_are_refused(about: Description, wrong: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        accounts(about, **{"taps": TAPS, "nonzero": NONZERO, "spike_rates": RATES, **wrong})
