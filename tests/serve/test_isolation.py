"""The serving process stands alone: no torch, no training, no export."""

import os
import subprocess
import sys
from pathlib import Path

from serving_process import ROOT


SERVE_ONE_IMAGE = """
import sys
from importlib.abc import MetaPathFinder

class Forbid(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "spikingjelly", "train", "export", "onnx", "matplotlib"}:
            raise AssertionError(f"the serving process imports {name}")

sys.meta_path.insert(0, Forbid())
from serve import demo, service
from serve.models import Models
from serve.ui import page
from serve.ui.contenders import Contenders
contenders = Contenders(Models([sys.argv[1]]))
page.build(contenders, demo.patient())
_, predictor = contenders.get()
print(len(predictor.predict(predictor.decode(predictor.sample(0))[None])))
assert not {"torch", "spikingjelly", "train", "export"} & sys.modules.keys()
"""


def test_the_serving_process_imports_no_torch_and_nothing_of_training(bundle_dir: Path) -> None:
    command = [sys.executable, "-c", SERVE_ONE_IMAGE, str(bundle_dir)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith("1")


def test_usage_reports_are_off_before_the_libraries_load() -> None:
    names = ("BENTOML_DO_NOT_TRACK", "GRADIO_ANALYTICS_ENABLED")
    env = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, serve; print([os.environ[name] for name in {names}])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "['True', 'False']"
