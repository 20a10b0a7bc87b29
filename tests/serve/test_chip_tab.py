"""The tab about the chip: the file's own numbers, one square a core, and plain words where there is no file."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from drawn import figures, page, said
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.bundle import Bundle, Description, FileRecord, read
from serve.ui.chip import chip_tab


SOURCE = {"chip": "loihi1", "value": 2e-11, "unit": "J", "source": "a paper", "status": "published"}
PER_CHIP = 128


def report(cores: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """What a student.net.json says, by default of three layers on seven cores."""
    cores = cores or [4, 2, 1]
    layers = [
        {
            "name": f"layer{i}",
            "shape": [8 + i, 5, 7] if i + 1 < len(cores) else [10],
            "weights": 1000 * i + 77,
            "weight_max": 127,
            "bias_max": 90,
            "vThMant": 9843 - i,
            "vDecay": 2048 + i,
            "iDecay": 0,
            "cores": count,
        }
        for i, count in enumerate(cores)
    ]
    placed = [
        {
            "name": f"layer{i}",
            "shape": layers[i]["shape"],
            "cores": count,
            "neurons": 2000 + i,
            "synapses": 5000,
            "share": {"neurons": 0.5 / (i + 1), "synapse_words": 0.25, "input_axons": 0.01, "output_axons": 0.0},
            "limited_by": "neurons",
        }
        for i, count in enumerate(cores)
    ]
    total = sum(cores)
    return {
        "format": 2,
        "file": "student.net",
        "chip": "loihi2",
        "T": 4,
        "window": 4,
        "latency_steps": 4 + len(cores),
        "input": {"encoding": "pixels, sent once", "bits": 8, "scale": 3.5},
        "layers": layers,
        "mapping": {
            "chip": "loihi2",
            "cores": total,
            "cores_per_chip": PER_CHIP,
            "chips": -(-total // PER_CHIP),
            "layers": placed,
        },
        "risks": [],
        "accuracy": {"images": 359, "dataset": "shapes", "split": "test", "float": 0.9805, "integer": 0.9777},
        "accuracy_on_samples": {"images": 16, "engine": "an engine", "float": 1.0, "integer": 0.9375, "file": 0.9375},
        "verify": {
            "file": "student.net",
            "reference": "the checkpoint's integer twin",
            "engine": "Lava's fixed-point simulator",
            "images": 16,
            "flips": 0,
            "spikes": 53716,
            "layers": [{"name": "act1", "flips": 0, "spikes": 53716}],
            "max_logit_difference": 0.0,
            "rule": "bit-exact",
            "ok": True,
        },
        "cost": {
            "per_image": {
                "synops": 400_000.0,
                "spikes": 3000.0,
                "updates": 10_000.0,
                "steps": 4,
                "time_s": 0.0008,
                "latency_steps": 7,
                "latency_s": 0.0014,
                "energy_J": 8.8e-6,
                "static_energy_J": 1.6e-5,
            },
            "sources": {
                "synaptic_operation": SOURCE,
                "neuron_update": SOURCE | {"value": 8e-11},
                "time_per_step": SOURCE | {"value": 2e-4, "unit": "s", "chip": "loihi2"},
                "power_static": SOURCE | {"value": 0.02, "unit": "W", "chip": "loihi2"},
            },
            "note": "an estimate: priced by another chip",
        },
    } | changes


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


def bundle(about: Description, folder: Path, **files: bytes) -> Bundle:
    """A bundle that lists these files; `student_net` stands for student.net.json."""
    names = {"student_net": "student.net.json", "verify": "verify.json"}
    listed = {}
    for key, content in files.items():
        (folder / names[key]).write_bytes(content)
        listed[names[key]] = FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return Bundle(folder=folder, about=about.model_copy(update={"files": listed}), id="0" * 12)


@pytest.fixture
def tab(about: Description, tmp_path: Path) -> Any:
    """The tab's HTML for a report."""
    return lambda content: chip_tab(bundle(about, tmp_path, student_net=json.dumps(content).encode()))


def test_every_layer_is_listed_with_its_own_numbers(tab: Any) -> None:
    content = report()
    drawn = figures(tab(content))["chip-layers"]
    assert drawn.lines[2:] == [
        ["1", "layer0", "8 \u00d7 5 \u00d7 7", "2,000", "77", "9,843", "2,048", "4", "50 % neurons"],
        ["2", "layer1", "9 \u00d7 5 \u00d7 7", "2,001", "1,077", "9,842", "2,049", "2", "25 % neurons"],
        ["3", "layer2", "10", "2,002", "2,077", "9,841", "2,050", "1", "17 % neurons"],
    ]
    for row, layer, placed in zip(drawn.data["layers"], content["layers"], content["mapping"]["layers"], strict=True):
        for key in ("name", "shape", "weights", "vThMant", "vDecay", "cores"):
            assert row[key] == layer[key]
        for key in ("neurons", "share", "limited_by"):
            assert row[key] == placed[key]


def test_bars_start_at_zero_and_end_at_a_full_core(tab: Any) -> None:
    drawn = figures(tab(report()))["chip-layers"]
    bars = [(float(bar["x"]), float(bar["width"])) for bar in drawn.all("rect")]
    zero, full = (next(x for x, _, words in drawn.texts if words == mark) for mark in ("0", "100 %"))
    assert bars == [(zero, pytest.approx((full - zero) * share, abs=0.01)) for share in (0.5, 0.25, 0.5 / 3)]


def test_little_is_not_written_as_nothing(tab: Any) -> None:
    content = report()
    content["mapping"]["layers"][0] |= {"limited_by": "output_axons", "share": {"output_axons": 0.0002}}
    assert figures(tab(content))["chip-layers"].lines[2][-1] == "< 0.1 % output axons"


@settings(max_examples=25, deadline=None)
@given(cores=st.lists(st.integers(1, 150), min_size=1, max_size=6))
def test_the_plan_has_a_square_for_every_core(
    about: Description, tmp_path_factory: pytest.TempPathFactory, cores: list[int]
) -> None:
    content = json.dumps(report(cores)).encode()
    drawn = figures(chip_tab(bundle(about, tmp_path_factory.mktemp("net"), student_net=content)))["chip-cores"]
    chips = -(-sum(cores) // PER_CHIP)
    squares = [(x, y, int(words)) for x, y, words in drawn.texts if words.isdigit()]
    numbers = Counter(number for _, _, number in squares)
    assert numbers == {i + 1: count + 1 for i, count in enumerate(cores)}  # one more: its name's
    assert len({(x, y) for x, y, _ in squares}) == len(squares)
    empty = "".join(path["d"] for path in drawn.all("path")).count("M")
    assert sum(cores) + empty == chips * PER_CHIP
    named = [words for _, _, words in drawn.texts if words.startswith("chip ")]
    used = [min(PER_CHIP, sum(cores) - PER_CHIP * k) for k in range(chips)]
    assert named == [f"chip {k + 1}: {n} of {PER_CHIP} cores in use" for k, n in enumerate(used)]
    firsts = [layer["first_core"] for layer in drawn.data["layers"]]
    assert firsts == [sum(cores[:i]) for i in range(len(cores))]
    width, height = map(float, drawn.svg.attrib["viewBox"].split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y, _ in drawn.texts)


def test_of_very_many_chips_the_first_are_drawn(tab: Any) -> None:
    html = tab(report([1000, 1000]))
    drawn = figures(html)["chip-cores"]
    assert len([words for *_, words in drawn.texts if words.startswith("chip ")]) == 12
    assert "The first 12 of 16 chips are drawn." in said(html)
    assert drawn.data["chips"] == 16
    assert "takes 2,000 cores on 16 Loihi 2 chips of 128 cores" in said(html)


def test_the_first_sentence_tells_place_proof_and_accuracy(tab: Any) -> None:
    assert (
        "As integers the network takes 7 of the 128 cores of one Loihi 2 (a model of the placement). Verified in "
        "Lava's fixed-point simulator: 0 of 53,716 spikes differ on 16 images. Accuracy on 359 images (shapes, test): "
        "97.77 % as integers, 98.05 % as floating-point numbers."
    ) in said(tab(report()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"engine": "the numpy model of netx"},
            "Run in our own simulator (the numpy model of netx), not in Lava: 0 of 53,716 spikes differ on 16 images.",
        ),
        ({"engine": "Another"}, "Run in Another: 0 of 53,716 spikes differ on 16 images."),
        ({"flips": 12, "ok": False, "images": 1}, "FAILED. Verified in Lava's"),
        ({"flips": 12, "ok": False, "images": 1}, "12 of 53,716 spikes differ on 1 image."),
    ],
)
def test_what_ran_the_file_is_named(tab: Any, changes: dict[str, Any], words: str) -> None:
    content = report()
    content["verify"] |= changes
    assert words in said(tab(content))


def test_a_file_that_was_not_run_is_neither_verified_nor_priced(tab: Any) -> None:
    html = tab(report(verify=None, cost=None, accuracy_on_samples={}))
    assert "Not verified: the file was written without a run." in said(html)
    assert "Not estimated" in said(html)
    assert "Verified" not in said(html)
    assert "chip-estimate" not in figures(html)


def test_the_estimate_multiplies_what_was_counted_by_the_prices(tab: Any) -> None:
    html = tab(report())
    drawn = figures(html)["chip-estimate"]
    energies = drawn.data["energy_J"]
    assert list(energies.values()) == pytest.approx([400_000 * 2e-11, 10_000 * 8e-11, 1.6e-5])
    assert [line[-1] for line in drawn.lines[:3]] == ["8 \u00b5J", "800 nJ", "16 \u00b5J"]
    widths = [float(bar["width"]) for bar in drawn.all("rect")]
    assert widths[0] / widths[2] == pytest.approx(0.5, abs=0.01)
    assert widths[1] / widths[2] == pytest.approx(0.05, abs=0.01)
    assert "1.4 ms for a single one (7 steps)." in said(html)
    assert "An estimate: priced by another chip." in said(html)
    assert "synaptic operation, Loihi 1: 20 pJ (published). a paper" in said(html)


def test_what_is_not_proven_is_told(tab: Any) -> None:
    assert "No image can make a current wrap around" in said(tab(report()))
    html = tab(report(risks=["layer0: it may saturate; use a smaller scale"]))
    assert "Not proven for every image. layer0: it may saturate; use a smaller scale." in said(html)
    assert "No image can" not in said(html)


@pytest.mark.parametrize(("T", "words"), [(1, "1 time step counts;"), (32, "32 time steps count;")])
def test_one_step_and_many(tab: Any, T: int, words: str) -> None:
    assert words in said(tab(report(T=T, window=T, latency_steps=T + 3)))


def test_the_reason_stands_where_there_is_no_file(about: Description, tmp_path: Path) -> None:
    content = json.dumps({"netx": {"unsupported": "body.act1: soft <reset>"}, "onnx": {}}).encode()
    html = chip_tab(bundle(about, tmp_path, verify=content))
    assert "body.act1: soft <reset>" in said(html)
    assert figures(html) == {}


def broken(**changes: Any) -> bytes:
    return json.dumps(report() | changes).encode()


def other_mapping(**changes: Any) -> bytes:
    content = report()
    content["mapping"] |= changes
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no student.net.json"),
        ({"verify": b'{"netx": {"format": 2}}'}, "holds no student.net.json"),
        ({"verify": b"[]"}, "verify.json: "),
        ({"student_net": b"\xff{"}, "student.net.json: "),
        ({"student_net": b"[" * 100_000}, "student.net.json: "),
        ({"student_net": broken(format=3)}, "format: Input should be 2"),
        ({"student_net": broken(layers=[])}, "those of 'mapping' are layer0, layer1, layer2"),
        ({"student_net": broken(T="four")}, "student.net.json: T: "),
        ({"student_net": broken(accuracy={})}, "accuracy.images: Field required"),
        ({"student_net": other_mapping(cores=8)}, "8 cores, but its layers have 7"),
        ({"student_net": other_mapping(chips=2)}, "are not 2 chips"),
        ({"student_net": other_mapping(cores_per_chip=0)}, "mapping.cores_per_chip: "),
        ({"student_net": broken(accuracy=report()["accuracy"] | {"float": float("nan")})}, "accuracy.float: "),
        ({"student_net": b'{"T": 1' + b"0" * 5000 + b"}"}, "student.net.json: "),
    ],
)
def test_a_bad_file_is_told_in_words(about: Description, tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    html = chip_tab(bundle(about, tmp_path, **files))
    assert html.startswith('<div class="card alert" role="alert">')
    assert words in said(html)
    assert "write the bundle again" in said(html)


def test_a_file_that_was_changed_since_is_not_shown(about: Description, tmp_path: Path) -> None:
    held = bundle(about, tmp_path, student_net=json.dumps(report()).encode())
    (tmp_path / "student.net.json").write_bytes(json.dumps(report([1])).encode())
    assert "not the file that bundle.json lists" in said(chip_tab(held))


def test_names_cannot_bring_markup(tab: Any) -> None:
    evil = "<script>alert(1)</script>\"'&</title>"
    content = report(risks=[evil], file=evil)
    content["input"]["encoding"] = content["mapping"]["chip"] = evil
    for rows in (content["layers"], content["mapping"]["layers"]):
        rows[0]["name"] = evil
    for key in ("engine", "reference", "rule"):
        content["verify"][key] = evil
    content["accuracy"]["dataset"] = evil
    content["cost"]["note"] = content["cost"]["sources"]["neuron_update"]["source"] = evil
    content["cost"]["sources"]["neuron_update"]["unit"] = evil
    html = tab(content)
    assert "<script>alert" not in html
    assert page(html).seen <= {
        *("div", "h3", "p", "ul", "li", "b", "details", "summary", "figure", "figcaption", "span", "button", "data"),
        *("svg", "g", "title", "text", "rect", "line", "path"),
    }
    assert figures(html)["chip-layers"].data["layers"][0]["name"] == evil
