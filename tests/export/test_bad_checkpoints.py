"""Every command that takes a checkpoint refuses a bad one in one line, with status 2, and writes nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export import bundle, energy, to_loihi, to_onnx
from train import evaluate
from train.cli import exit_status


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train.evaluate": evaluate.command,
    "export.to_onnx": to_onnx.command,
    "export.to_loihi": to_loihi.command,
    "export.energy": energy.command,
    "export.bundle": bundle.command,
}


def truncated(student: Path) -> bytes:
    return student.read_bytes()[:-100]


def empty(_: Path) -> bytes:
    return b""


def foreign(_: Path) -> bytes:
    return b"\x80\x04not a pickle"


def newer(student: Path) -> bytes:
    content = torch.load(student, weights_only=True)
    torch.save(content | {"format": 2}, student.with_name("newer"))
    return student.with_name("newer").read_bytes()


@pytest.mark.filterwarnings("error:Detected pickle protocol")  # it would be a second line on stderr
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("damage", [truncated, newer, empty, foreign])
def test_a_bad_checkpoint_is_one_line_and_status_2(
    name: str,
    damage: Callable[[Path], bytes],
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "student.pt").write_bytes(student.read_bytes())
    bad = tmp_path / "bad.pt"
    bad.write_bytes(damage(copy / "student.pt"))
    assert exit_status(lambda: COMMANDS[name]([str(bad)])) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {bad}: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"bad.pt", "copy"}


@pytest.mark.parametrize("name", ["export.to_onnx", "export.to_loihi", "export.energy", "export.bundle"])
def test_a_teacher_is_refused_where_a_student_is_needed(
    name: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(teacher.parent.rglob("*"))
    assert exit_status(lambda: COMMANDS[name]([str(teacher)])) == 2
    assert "a teacher (ReLU), not a spiking student; give a student.pt" in capsys.readouterr().err
    assert set(teacher.parent.rglob("*")) == before


def test_a_process_given_a_malicious_file_runs_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "attack.py").write_text(
        "import torch\n"
        "class Attack:\n"
        "    def __reduce__(self):\n"
        '        return exec, (\'open("ran", "w")\',)\n'
        "torch.save({'format': 1, 'net': Attack()}, 'bad.pt')\n"
    )
    subprocess.run([sys.executable, "attack.py"], cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "-m", "export.to_onnx", "bad.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: bad.pt: not a TSERve checkpoint, or a damaged one")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"attack.py", "bad.pt"}
