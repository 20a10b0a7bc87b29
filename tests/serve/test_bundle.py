"""A bundle is read only if it is whole and understood; every refusal names the file and the way out."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import THRESHOLD

from serve.bundle import BundleError, read
from serve.exits import Exit


Change = Callable[[dict], object]


def rewrite(folder: Path, change: Change) -> None:
    """Change bundle.json in place."""
    fields = json.loads((folder / "bundle.json").read_text())
    change(fields)
    (folder / "bundle.json").write_text(json.dumps(fields))


def test_a_whole_bundle_is_read(bundle_dir: Path) -> None:
    bundle = read(bundle_dir)
    assert bundle.about.input.shape == (1, 8, 8)
    assert bundle.model_file("fp32", "unrolled") == bundle_dir / "model.onnx"
    assert bundle.model_file("fp32", "step") == bundle_dir / "step.onnx"
    assert bundle.about.exits["fp32"].exit == Exit("confidence", THRESHOLD)


def test_a_missing_bundle_names_the_folder_and_the_commands(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        read(tmp_path / "none")
    for part in (str(tmp_path / "none"), "python -m export.bundle CKPT", "make demo", "TSERVE_BUNDLE"):
        assert part in str(refused.value)


def test_content_is_what_was_verified_or_an_error(own_bundle: Path) -> None:
    bundle = read(own_bundle)
    data = (own_bundle / "step.onnx").read_bytes()
    assert bundle.content("step.onnx") == data
    for wrong in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
        (own_bundle / "step.onnx").write_bytes(wrong)
        with pytest.raises(BundleError, match=rf"step\.onnx: not the file .* \({len(wrong)} bytes\), expected"):
            bundle.content("step.onnx")
    (own_bundle / "step.onnx").unlink()
    with pytest.raises(BundleError, match=r"step\.onnx: listed in bundle.json, but No such file"):
        bundle.content("step.onnx")
    with pytest.raises(KeyError):
        bundle.content("bundle.json")  # not listed: nothing says what it must be


def test_the_id_is_of_the_description_as_it_was_read(own_bundle: Path) -> None:
    text = (own_bundle / "bundle.json").read_bytes()
    bundle = read(own_bundle)
    assert bundle.id == hashlib.sha256(text).hexdigest()[:12]
    rewrite(own_bundle, lambda b: b.update(created="2026-11-21T12:00:00Z"))
    assert bundle.id != read(own_bundle).id


@pytest.mark.parametrize("name", ["model.onnx", "step.onnx", "samples/001.png"])
def test_one_changed_byte_is_found(own_bundle: Path, name: str) -> None:
    data = bytearray((own_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: not the file .* SHA-256"):
        read(own_bundle)


def test_a_missing_file_is_named(own_bundle: Path) -> None:
    (own_bundle / "samples" / "000.png").unlink()
    with pytest.raises(BundleError, match=r"samples/000\.png: listed in bundle.json, but No such file"):
        read(own_bundle)


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "samples/001.png"])
def test_a_pipe_is_refused_and_not_waited_for(own_bundle: Path, name: str) -> None:
    content = read(own_bundle).content if name != "bundle.json" else None
    (own_bundle / name).unlink()
    os.mkfifo(own_bundle / name)
    refused: list[str] = []

    def tried(reading: Callable[[], object]) -> None:
        with pytest.raises(BundleError) as error:
            reading()
        refused.append(str(error.value))

    calls = [lambda: read(own_bundle)] + ([lambda: content(name)] if content else [])
    for call in calls:
        thread = threading.Thread(target=tried, args=[call], daemon=True)
        thread.start()
        thread.join(10)
    assert len(refused) == len(calls)
    for words in refused:
        assert name in words
        assert "Not a regular file" in words


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"bundle"', "[" * 100_000, b"\xff\xfe{}"])
def test_what_is_no_description_is_refused(own_bundle: Path, text: str | bytes) -> None:
    (own_bundle / "bundle.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        read(own_bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.update(format=1), "bundle format 1, this server reads 3; write the bundle again"),
        (lambda b: b.update(format=4), "bundle format 4, this server reads 3"),
        (lambda b: b.pop("labels"), "labels: Field required"),
        (lambda b: b.update(T=0), "T: Input should be greater than 0"),
        (lambda b: b["input"].update(channels=2), r"input\.channels: Input should be 1 or 3"),
        (lambda b: b["models"]["fp32"].pop("step"), r"models\.fp32\.step: Field required"),
        (lambda b: b["models"].update(int4=b["models"]["fp32"]), r"models\.int4\S*: Input should be 'fp32', 'fp16' or"),
        (lambda b: b.update(precision="int8"), "precision int8 has no entry under 'models'"),
        (lambda b: b["models"].update(int8=b["models"]["fp32"]), "'models' are fp32, int8, but 'exits' are fp32"),
        (lambda b: b["exits"]["fp32"].update(rule="patience"), r"exits\.fp32\.rule: Input should be 'confidence', 'en"),
        (lambda b: b["exits"]["fp32"].update(threshold=1.5), r"exits\.fp32\.threshold: Input should be less than or e"),
        (lambda b: b["exits"]["fp32"].update(threshold=0.7), "threshold 0.7 is in no row of the table"),
        (lambda b: b["synapses"][1].update(kind="xor"), r"synapses\.1\.kind"),
        (lambda b: b["energy"].update(ac_J=float("nan")), r"energy\.ac_J: Input should be a finite number"),
        (lambda b: b["lif_shapes"].pop(), "1 'lif_shapes' for 2 'lif_layers'"),
        (
            lambda b: b["energy"]["conventions"][2]["layers"][1].update(synapse=2),
            "'energy': event_exact: layer 'features.1.conv' has synapse 2, there are 2",
        ),
        (
            lambda b: b["energy"]["conventions"][0]["layers"][3].update(lif=None),
            r"conventions\.0\.layers\.3: Value error, layer 'pool' is charged by the spike, but names no 'lif'",
        ),
        (
            lambda b: b["energy"]["conventions"][0]["layers"][2].update(synapse=None),
            "'features.1.conv' is charged by the tap or input, but names no 'synapse'",
        ),
        (
            lambda b: b["energy"]["conventions"][1].pop("unavailable"),
            "convention 'bn_fused' must have either 'layers' or a reason in 'unavailable'",
        ),
        (lambda b: b["models"]["fp32"].update(step="other.onnx"), r"other\.onnx: used, but not listed"),
        (lambda b: b["samples"].append({"file": "x.png", "label": "ring"}), r"x\.png: used, but not listed"),
        (lambda b: b["files"].update({"../x": b["files"]["model.onnx"]}), r"\.\./x: file names must stay inside"),
        (lambda b: b["files"].update({"/etc/x": b["files"]["model.onnx"]}), "/etc/x: file names must stay inside"),
    ],
)
def test_a_wrong_field_is_named(own_bundle: Path, change: Change, said: str) -> None:
    rewrite(own_bundle, change)
    with pytest.raises(BundleError, match=said):
        read(own_bundle)


def test_keys_of_later_versions_are_ignored(own_bundle: Path) -> None:
    rewrite(own_bundle, lambda b: b.update(colour="blue"))
    assert read(own_bundle).about.T == 3
