"""A loss curve that only a change of what is computed may change.

In float64 another processor, thread number or engine changes nothing but rounding. A commit that changes the curve on
purpose says so and writes it anew: `python -m tests.train.test_golden`.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest

from train import distill
from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.methods import METHODS


GOLDEN = Path(__file__).parent / "golden/digits-tser.json"
CONFIG = DistillConfig(
    data=DataConfig(limit=600),
    net=NetConfig(width=0.25),
    optim=OptimConfig(epochs=5, batch_size=32),
    method=METHODS["tser"],
    teacher_epochs=2,
    device="cpu",
    precision="fp64",
)


def curves(folder: Path, **changes: str) -> dict[str, list[dict[str, float]]]:
    """The loss terms of every epoch, of the teacher and of the student."""
    distill.main(dataclasses.replace(CONFIG, out=folder, **changes))
    files = {"teacher": folder / "teacher/metrics.jsonl", "student": folder / "metrics.jsonl"}
    return {name: [json.loads(line)["loss"] for line in path.read_text().splitlines()] for name, path in files.items()}


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_the_loss_curve_is_the_golden_one(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, golden = curves(tmp_path / "run", engine=engine), json.loads(GOLDEN.read_text())
    assert [len(found[name]) for name in ("teacher", "student")] == [2, 5]
    for name in golden:
        for epoch, (a, b) in enumerate(zip(found[name], golden[name], strict=True), 1):
            assert a == pytest.approx(b, rel=1e-7), f"{name}, epoch {epoch}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(curves(Path(folder)), indent=1) + "\n")
