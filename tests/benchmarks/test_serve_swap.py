"""Variants of a bundle tell by their answers which they are, and are put in each other's place."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

import serve_raw
import serve_swap
from serve_client import Sample
from synthetic import LABELS, SIZE, T, png, write_bundle


PICTURES = [png(np.random.default_rng(i).integers(0, 256 >> i % 4, (SIZE, SIZE)).astype(np.uint8)) for i in range(8)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("swap") / "source")


@pytest.fixture(scope="module")
def variants(source: Path) -> list[serve_swap.Variant]:
    return [serve_swap.make(source, source.parent / f"v{n}", n, precision="fp32", files=PICTURES) for n in range(3)]


def test_every_variant_says_the_same_word_and_its_number(source: Path, variants: list[serve_swap.Variant]) -> None:
    plain = serve_swap.answers(source, "fp32", PICTURES)
    for number, variant in enumerate(variants):
        assert variant.labels == tuple(f"{LABELS[k]}~{number}" for k in plain)
    assert len(set(plain)) > 1
    assert len({variant.id for variant in variants}) == 3


def test_a_variant_is_a_bundle_that_is_served_in_both_forms(variants: list[serve_swap.Variant]) -> None:
    from serve import bundle

    for variant in variants:
        assert bundle.read(variant.folder).about.name == variant.name
        raw = serve_raw.open_bundle(variant.folder, "fp32", threads=1, pictures=PICTURES)
        assert [raw.all_steps(image) for image in raw.images] == [T] * 8
        assert len({raw.anytime(image) for image in raw.images}) > 1


def test_models_of_one_variant_under_the_labels_of_another_are_found(
    variants: list[serve_swap.Variant], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    serve_swap.place(variants[1].folder, mixed, "rename")
    (mixed / "bundle.json").write_bytes((variants[2].folder / "bundle.json").read_bytes())
    best = serve_swap.answers(mixed, "fp32", PICTURES)
    labels = json.loads((mixed / "bundle.json").read_text())["labels"]
    answers = [{"label": labels[k], "model": variants[2].name, "bundle": variants[2].id} for k in best]
    samples = [Sample(0, 0, 1, 200, "", i, "", answer) for i, answer in enumerate(answers)]
    assert len(serve_swap.wrong(samples, variants)) == 8
    right = [s._replace(answer=s.answer | {"label": variants[2].labels[s.request]}) for s in samples]
    assert serve_swap.wrong(right, variants) == []
    assert len(serve_swap.wrong([right[0]._replace(answer=right[0].answer | {"bundle": "0" * 12})], variants)) == 1


@pytest.mark.parametrize("modes", list(itertools.permutations(serve_swap.MODES)), ids="-".join)
def test_a_bundle_is_placed_over_whatever_was_there(
    variants: list[serve_swap.Variant], tmp_path: Path, modes: tuple[str, ...]
) -> None:
    near = [serve_swap.Variant(folder=tmp_path / v.folder.name, id=v.id, name=v.name, labels=()) for v in variants]
    for variant, copy in zip(variants, near, strict=True):
        serve_swap.place(variant.folder, copy.folder, "rename")
    for mode, variant in zip((*modes, *modes), itertools.cycle(near), strict=False):
        serve_swap.place(variant.folder, tmp_path / "live", mode)
        assert contents(tmp_path / "live") == contents(variant.folder)
        assert {path.name for path in tmp_path.iterdir()} == {"v0", "v1", "v2", "live"}


def contents(folder: Path) -> dict[str, bytes]:
    folder = folder.resolve()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
