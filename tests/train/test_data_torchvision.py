import os
import subprocess
import sys
import textwrap


def python(code: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_torchvision_imports_and_its_data_sets_and_transforms_work():
    code = """
        from train.torchvision_guard import import_torchvision
        torchvision = import_torchvision()
        assert import_torchvision() is torchvision
        import torch
        from torchvision.transforms import v2
        assert v2.RandomCrop(8)(torch.zeros(3, 9, 9)).shape == (3, 8, 8)
        torchvision.datasets.FakeData(size=1)[0]
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_torchvision_imports_by_itself(tmp_path):
    (tmp_path / "torchvision.py").write_text("own = True")
    code = """
        import sys
        from train import torchvision_guard
        assert torchvision_guard.import_torchvision().own
        assert not torchvision_guard._declared and "torch" not in sys.modules
    """
    done = python(code, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_another_failure_of_the_import_passes_through(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('disk on fire')")
    done = python("from train.torchvision_guard import import_torchvision; import_torchvision()", str(tmp_path))
    assert "disk on fire" in done.stderr
