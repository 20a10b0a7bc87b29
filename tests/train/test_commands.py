"""The commands as a user starts them: what they write, and what they say to bad input before anything is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train import distill, evaluate
from train.checkpoint import Checkpoint
from train.cli import exit_status
from train.config import DistillConfig
from train.data import load
from train.metrics import SplitOutputs, calibration_error, summary


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--net.name", "vgg_smal"], "unknown network 'vgg_smal'; did you mean vgg_small?"),
        (["--data.name", "cifar"], "unknown data set 'cifar'; did you mean cifar10 or cifar100"),
        (["--method.name", "tsr"], "did you mean tser"),
        (["digit"], "unknown recipe 'digit'; did you mean digits?"),
        (["--net.T", "0"], "net.T must be in 1 to 64 time steps, got 0"),
        (["--data.name", "cifar10", "--data.root", "nowhere"], "data_batch_1 is missing"),
        (["--teacher", "none.pt"], "none.pt: no such file"),
        (["--data.size", "64"], "data.size is for data.name folder and recordings of events; digits has its own size"),
        (["--data.frames", "9"], "data.frames is for recordings of events; digits has images"),
        (["--net.size", "32"], "Unrecognized options: --net.size"),  # the data set says it
        (["--net.num_classes", "5"], "Unrecognized options: --net.num_classes"),
        (["--net.no_spiking"], "Unrecognized options: --net.no_spiking"),
        (["--init_from_teacher", "--teacher_width", "1", "--net.neuron", "if"], "is for net.neuron lif, got if"),
        (["--optim.lr", "inf"], "optim.lr must be finite, got inf"),
        (["--net.name", "vgg11"], "at least 32 pixels, got 8"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(lambda: distill.command(arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_a_recipe_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[optim]\nepoch = 3\n")
    done = run("train.distill", "mine.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "epochs" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_teacher_of_other_classes_is_refused(student: Path) -> None:
    checkpoint = Checkpoint.load(student.parent / "teacher/teacher.pt")
    other = student.parent.parent / "other.pt"
    object.__setattr__(checkpoint, "labels", tuple("abcdefghij"))
    checkpoint.save(other)
    with pytest.raises(ValueError, match=r"it knows 10 classes \(a, b, c, \.\.\), digits has 10 \(0, 1, 2, \.\.\)"):
        distill.main(DistillConfig(teacher=other))


def test_a_run_leaves_what_is_needed_to_repeat_it(student: Path) -> None:
    record = json.loads((student.parent / "run.json").read_text())
    assert record["config"]["method"]["name"] == "tser"
    assert record["seed"] == 0
    assert {"python", "torch", "spikingjelly"} <= record["versions"].keys()
    assert record["dataset_md5"] == load(DistillConfig().data).md5
    epochs = record["config"]["optim"]["epochs"]
    assert len(record["history"]) == len((student.parent / "metrics.jsonl").read_text().splitlines()) == epochs
    assert list((student.parent / "tensorboard").glob("events.out.*"))


def test_evaluate_writes_the_accuracy_that_the_checkpoint_has(student: Path, tmp_path: Path) -> None:
    report = evaluate.main(evaluate.EvaluateConfig(checkpoint=student, out=tmp_path, device="cpu"))
    assert json.loads((tmp_path / "evaluate.json").read_text()) == report
    checkpoint = Checkpoint.load(student)
    assert report["accuracy"] == checkpoint.metrics["accuracy"] == report["accuracy_by_T"][-1]
    names = {"evaluate.json", "accuracy.png", "rates.png", "confusion.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    digits = load(DistillConfig().data)
    with torch.no_grad():
        logits = checkpoint.network()(checkpoint.preprocess(digits.test.images))
    by_hand = [(logits[:t].mean(0).argmax(-1) == digits.test.labels).double().mean().item() for t in range(1, 5)]
    assert report["accuracy_by_T"] == pytest.approx(by_hand, abs=1e-9)


def test_the_summary_of_a_hand_made_split() -> None:
    # Two steps, three images, two classes; the second image is right at step 1 only, the third at step 2 only.
    logits = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]], [[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]])
    labels, rates = torch.tensor([0, 0, 1]), {"act": torch.tensor([0.5, 0.25])}
    found = summary(SplitOutputs(logits=logits, labels=labels, rates=rates))
    assert found["accuracy_by_step"] == pytest.approx([2 / 3, 2 / 3])
    assert found["accuracy_by_T"] == pytest.approx([2 / 3, 1 / 3])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["step_spread"] == 0
    assert found["firing_rate"] == 0.375


def test_the_calibration_error_of_a_known_case() -> None:
    # Nine of ten answers at confidence 0.75 are right: off by 0.15.
    z = torch.log(torch.tensor([0.75, 0.25])).expand(10, 2)
    labels = torch.tensor([0] * 9 + [1])
    assert calibration_error(z, labels) == pytest.approx(0.15, abs=1e-6)
