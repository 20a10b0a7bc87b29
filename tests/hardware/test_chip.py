import re

import pytest

from hardware import chip


@pytest.mark.parametrize("name", chip.names())
def test_every_number_has_a_unit_a_source_and_a_status(name: str) -> None:
    facts = chip.load(name).facts
    assert len(facts) >= 10
    for fact in facts.values():
        assert fact.unit in ("J", "W", "s", "bit", "1")
        assert len(fact.source) > 20
        assert fact.status in chip.STATUSES


def test_45nm_prices_are_horowitz_and_a_mac_is_a_product_and_a_sum() -> None:
    cmos = chip.load("cmos45nm")
    assert cmos["energy.ac_fp32"].value == 0.9e-12
    assert cmos["energy.mac_fp32"].value == 4.6e-12
    for kind in ("fp32", "fp16", "int8", "int32"):
        parts = cmos[f"energy.mult_{kind}"].value + cmos[f"energy.ac_{kind}"].value
        assert cmos[f"energy.mac_{kind}"].value == pytest.approx(parts)


def test_loihi_2_has_no_energy_per_operation_because_none_is_published() -> None:
    assert not [key for key in chip.load("loihi2") if key.startswith("energy.")]
    assert "energy.synaptic_operation" in chip.load("loihi1")


@pytest.mark.parametrize(("wrong", "near"), [("lohi2", "loihi2"), ("cmos45", "cmos45nm")])
def test_unknown_chip_gives_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(chip.ChipError, match=rf"unknown chip '{wrong}'; did you mean .*{near}"):
        chip.load(wrong)


def test_a_chip_name_is_never_a_path() -> None:
    with pytest.raises(chip.ChipError, match="unknown chip"):
        chip.load("../chips/loihi2")


def test_unknown_key_gives_the_nearest_key() -> None:
    with pytest.raises(chip.ChipError, match=r"cmos45nm has no 'energy.ac_f32'; did you mean energy.ac_fp32"):
        chip.load("cmos45nm")["energy.ac_f32"]


FACT = 'value = 1.0\nunit = "J"\nsource = "someone"\nstatus = "published"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [", "chip x: not TOML"),
        (f"[energy.add]\n{FACT}", "chip x: title is None"),
        ('title = "t"', "chip x: no facts"),
        ('title = "t"\nenergy = 3', "chip x: energy: a bare 3"),
        ('title = "t"\n[energy.add]\nvalue = 1', "chip x: energy.add: missing source, missing status, missing unit"),
        (f'title = "t"\n[energy.add]\n{FACT}note = "n"', "chip x: energy.add: unknown note"),
        (
            f'title = "t"\n[energy.add]\n{FACT}'.replace("published", "guessed"),
            "chip x: energy.add: status is 'guessed'",
        ),
        (f'title = "t"\n[energy.add]\n{FACT}'.replace("1.0", '"1"'), "chip x: energy.add: value is '1'"),
        (f'title = "t"\n[energy.add]\n{FACT}'.replace("someone", " "), "chip x: energy.add: source is ' '"),
    ],
)
def test_a_malformed_file_names_the_key(text: str, message: str) -> None:
    with pytest.raises(chip.ChipError, match=re.escape(message)):
        chip.parse(text, name="x")
