"""The server does what its own description says: schemathesis makes requests of it, good ones and bad ones."""

import os
import re
import subprocess
import sys
from pathlib import Path


EXAMPLES = os.environ.get("TSERVE_SCHEMATHESIS_EXAMPLES", "30")
"""At most, for each operation; 1500 make some 5,000 cases."""


def test_no_request_is_answered_otherwise_than_described(server: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server}/docs.json", "--seed", "1", "-n", EXAMPLES]
    command += ["--phases", "examples,coverage,fuzzing", "--no-color"]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    selected, tested = re.search(r"Selected: (\d+)/\d+\s+Tested: (\d+)", done.stdout).groups()
    assert selected == tested == "9"
    generated, passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout).groups()
    assert generated == passed
    assert int(generated) >= 300
