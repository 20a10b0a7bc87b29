"""SIGTERM leaves nothing that a command has written aside."""

import subprocess
import sys
from pathlib import Path


SCRIPT = """
import sys, time
from pathlib import Path
from train import cli, record

def command():
    with record.atomic(Path("report.json")) as new:
        new.write_text("half")
        print("begun", flush=True)
        time.sleep(60)

sys.exit(cli.exit_status(command))
"""


def test_a_terminated_command_leaves_no_file(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert list(tmp_path.iterdir())
    process.terminate()
    assert process.wait(30) == 143
    process.stdout.close()
    assert not list(tmp_path.iterdir())
