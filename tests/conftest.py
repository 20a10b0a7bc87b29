"""What several packages' tests share: one trained student, its bundle, and skips that say how to get what is missing.

The student and the bundle are made once a test run, also where pytest-xdist runs several processes.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


# One thread in every process: two test processes share two cores, and results that are compared bit for bit between
# processes must be summed in the same order. This stands before the first import of torch.
os.environ["OMP_NUM_THREADS"] = "1"

MIN_ACCURACY = 0.9

# The files that take longest, in that order. They start first: one that starts last leaves the other cores idle for as
# long as it takes. xdist's own order is by the number of tests, so `make test` has --no-loadscope-reorder.
LONGEST = (
    "train/test_kill.py",
    "benchmarks/test_benchmarks.py",
    "train/test_parallel.py",
    "train/test_zoo.py",
    "train/test_processes.py",
    "serve/test_page.py",
    "serve/test_schemathesis.py",
    "benchmarks/test_inference.py",
    "train/test_reproduce.py",
    "serve/test_page_figures.py",
    "train/test_recipes.py",
    "train/test_table4.py",
    "serve/test_page_errors.py",
    "serve/test_production.py",
    "hardware/test_random_nets.py",
    "export/test_lower.py",
    "serve/test_page_controls.py",
    "benchmarks/test_page_speed.py",
    "benchmarks/test_serve_load.py",
    "export/test_onnx_families.py",
    "hardware/test_lava_streams.py",
    "export/test_onnx_int8.py",
    "hardware/test_netx_kinds.py",
    "serve/test_service.py",
)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(NAME, make): the path called NAME, made by make(path) in the first of the processes that asks for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def path_of(name: str, make: Callable[[Path], None]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = shared / name
            if not path.exists():
                making = shared / f"{name}.making"
                making.mkdir()  # a second attempt after a failure ends here, at once
                with contextlib.chdir(making):  # the commands write runs/latest where they are started
                    make(making / "run")
                os.replace(making / "run", path)
        return path

    return path_of


@pytest.fixture(scope="session")
def student(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A student.pt that `python -m train.distill` trained on the digits, its teacher in teacher/; do not change it."""
    from train import distill
    from train.checkpoint import Checkpoint
    from train.config import DistillConfig, NetConfig, OptimConfig

    def train(out: Path) -> None:
        net, optim = NetConfig(name="vgg_small", width=0.5, T=4), OptimConfig(epochs=10, batch_size=32)
        distill.main(DistillConfig(out=out, net=net, optim=optim, teacher_epochs=6, device="cpu"))

    path = once("student", train) / "student.pt"
    accuracy = Checkpoint.load(path).metrics["accuracy"]
    assert accuracy > MIN_ACCURACY, f"the shared student knows only {accuracy:.2%} of the test digits"
    return path


@pytest.fixture(scope="session")
def teacher(student: Path) -> Path:
    """The teacher.pt of the shared student; do not change it."""
    return student.parent / "teacher" / "teacher.pt"


@pytest.fixture(scope="session")
def bundle(student: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The folder that `python -m export.bundle` writes of the shared student; do not change it."""
    from export import bundle as command

    def write(out: Path) -> None:
        command.main(command.BundleConfig(checkpoint=student, out=out, verify="reference"))

    return once("bundle", write)


def needs_lava() -> str | None:
    """Why tests that are marked `lava` cannot run, with the command that helps; None if they can."""
    from hardware import lava

    try:
        lava.python()
    except lava.LavaMissing as missing:
        return str(missing)
    return None


def needs_cifar() -> str | None:
    """Why tests that are marked `cifar` cannot run, with the command that helps; None if CIFAR-10 is there."""
    root = Path(os.environ.get("TSERVE_DATA", "data"))
    if all((root / "cifar-10-batches-py" / name).is_file() for name in ("data_batch_1", "test_batch")):
        return None
    command = "python -m train.distill --data.name cifar10 --data.download"
    return f"no CIFAR files under {root}: {command}, or set TSERVE_DATA to the folder that has them"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and skip by name what needs something that this machine lacks."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONGEST)}
    if missing := [str(path) for path in place if not path.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py, LONGEST: there is no {', '.join(missing)}")
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))  # stable
    for marker, needs in (("lava", needs_lava), ("cifar", needs_cifar)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := needs()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
