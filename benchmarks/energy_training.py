"""`python benchmarks/energy_training.py [-- RECIPE FLAGS]`: joules that meters measure while a student is trained.

Runs `python -m train.distill RECIPE FLAGS` between two readings of every meter of the machine (NVML, RAPL); without a
meter it says so and ends with status 2. Before it the machine idles, and its idle power is reported and subtracted. A
meter sees all that its part of the machine does, so nothing else should run there. The whole command is measured:
loading, the teacher if one is trained on the way (give one with --teacher to leave it out), evaluation.
Writes OUT/energy_training-DATASET-NET-METHOD-TT.json.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from energy_measured import idle_watts
from time_to_accuracy import common
from train_speed import cpu_name

from hardware.meter import Meters, find_meters
from hardware.meter import measure as metered
from train import cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    seconds: float = 30.0
    """How long the machine idles before."""
    out: Path = Path("results")
    """Folder of the JSON file."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")


def train(flags: Sequence[str], folder: Path) -> None:
    """Train a student into `folder`. Raises ValueError where that fails."""
    command = [sys.executable, "-m", "train.distill", *flags, "--out", str(folder)]
    if status := subprocess.run(command, check=False).returncode:
        raise ValueError(f"the training ended with status {status}: {' '.join(command)}")


def main(
    config: Config,
    flags: Sequence[str],
    *,
    meters: Meters | None = None,
    train: Callable[[Sequence[str], Path], None] = train,
) -> dict[str, Any]:
    """Idle, train, write the JSON and return it. Raises ValueError where there is no meter, or the training fails."""
    from train.record import write_json

    meters = find_meters() if meters is None else meters
    if not meters.found:
        raise ValueError(f"no meter of energy can be read on this machine, so nothing is measured ({meters})")
    idle = idle_watts(meters, seconds=config.seconds)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with metered(meters) as spent:
            train(flags, out)
        run = json.loads((out / "run.json").read_text())
    epochs = len(run["history"])
    net = {meter: joules - idle[meter] * spent.seconds for meter, joules in spent.joules.items() if meter in idle}
    told = run["config"]
    content = {
        "settings": {"flags": list(flags), "idle_seconds": config.seconds},
        "config": common(told),
        "machine": {"device": run["device"], "cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "meters": {meter.name: meter.how for meter in meters.found},
        "missing": spent.missing,
        "versions": run["versions"],
        "git": run["git"],
        "idle_W": idle,
        "seconds": spent.seconds,
        "epochs": epochs,
        "total_J": spent.joules,
        "net_J": net,
        "net_J_an_epoch": {meter: joules / epochs for meter, joules in net.items()},
        "accuracy": run["metrics"]["accuracy"],
    }
    name = f"{told['data']['name']}-{told['net']['name']}-{told['method']['name']}-T{told['net']['T']}"
    path = config.out / f"energy_training-{name}.json"
    write_json(path, content)
    for meter, joules in net.items():
        print(f"{meter}: {joules:.4g} J for {epochs} epochs ({spent.joules[meter]:.4g} J with idle power)")
    print(f"written: {path}")
    return content


def command(argv: list[str]) -> None:
    """Parse and run; what stands after -- is the training's."""
    split = argv.index("--") if "--" in argv else len(argv)
    config = cli.parse(
        Config, argv=argv[:split], prog="python benchmarks/energy_training.py", description=__doc__ or ""
    )
    main(config, argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
