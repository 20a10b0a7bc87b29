"""The figures in docs/serving.md are those of the results files."""

import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/serving.md").read_text()
CONTENDERS = {
    "onnxruntime, all T steps": "raw",
    "service, all T steps": "service",
    "FastAPI, all T steps": "fastapi",
    "onnxruntime, any-time": "raw_anytime",
    "service, any-time, as served": "service_anytime",
}


def result(name: str) -> dict:
    return json.loads((ROOT / "results" / f"serve_{name}.json").read_text())


@pytest.mark.parametrize(("row", "contender"), CONTENDERS.items())
def test_a_row_of_answers_a_second(row: str, contender: str) -> None:
    int8, fp32 = (result(f"load-resnet18-{precision}")["rows"] for precision in ("int8", "fp32"))
    medians = [int8[callers][contender]["answers_per_s"]["median"] for callers in ("1", "8", "32", "64")]
    medians += [fp32[callers][contender]["answers_per_s"]["median"] for callers in ("1", "32")]
    cells = [f"{value:.0f}" for value in medians[:4]] + [f"{value:.1f}" for value in medians[4:]]
    assert f"| {row} | {' | '.join(cells)} |" in DOCS


def test_the_ratios() -> None:
    int8, fp32 = (result(f"load-resnet18-{precision}")["ratios"] for precision in ("int8", "fp32"))

    def ratio(found: dict, callers: int, name: str) -> str:
        return f"{found[str(callers)][name]['answers']['median']:.2f}"

    spread = int8["32"]["service/raw"]["answers"]
    for said in (
        f"gives {ratio(int8, 32, 'service/raw')} of onnxruntime's answers at 32 callers in int8 "
        f"({spread['min']:.2f} to {spread['max']:.2f} over the rounds) and {ratio(fp32, 32, 'service/raw')} in fp32",
        f"any-time, {ratio(int8, 32, 'service_anytime/raw_anytime')} and "
        f"{ratio(fp32, 32, 'service_anytime/raw_anytime')}.",
        f"as served {ratio(int8, 1, 'service_anytime/fastapi')} times its answers at 1 caller and "
        f"{ratio(int8, 32, 'service_anytime/fastapi')} at 32",
        f"{ratio(int8, 1, 'service/fastapi')} (int8) and {ratio(fp32, 1, 'service/fastapi')} (fp32) at 1 caller, "
        f"{ratio(int8, 32, 'service/fastapi')} and {ratio(fp32, 32, 'service/fastapi')} at 32",
        f"{result('load-resnet18-int8-5000')['rows']['32']['service_anytime']['answers_per_s']['median']:.0f} a second",
    ):
        assert said in " ".join(DOCS.split())


def test_what_the_service_bears() -> None:
    trials = {trial: result(f"endurance-{trial}") for trial in ("overload", "soak", "swap", "kill", "term", "hostile")}
    assert all(line["holds"] for trial in trials.values() for line in trial["lines"])
    found = {trial: result["found"] for trial, result in trials.items()}
    kills = [kill["answered_s"] for kill in found["kill"]["kills"]]
    grown, left = (
        next(line["measured"] for line in trials[trial]["lines"] if "memory" in line["claim"])
        for trial in ("soak", "hostile")
    )
    shed = found["overload"]["shed_ms"]
    for said in (
        f"{shed['number']:,} refused, the slowest in {shed['max']:.0f} ms",
        f"grows {100 * grown:.1f} % after",
        f"0 of {found['swap']['load']['requests']:,} requests failed",
        f"an answer again after {min(kills):.1f} to {max(kills):.1f} s",
        f"0 of {sum(each['under_way'] for each in found['term']['rounds'])} requests under way lost",
        f"memory {100 * left:.0f} % above before",
    ):
        assert said in DOCS
