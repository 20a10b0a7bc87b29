"""What `bentoml build` packs is all that serving needs."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from serving_process import ROOT


def test_a_bento_holds_the_server_and_the_bundle(bundle_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "serve", source / "serve", ignore=ours)
    for name in ("bentofile.yaml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(bundle_dir, source / "bundle")
    env = os.environ | {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (bento,) = (path for path in (tmp_path / "home" / "bentos" / "tserve").iterdir() if path.is_dir())
    for folder in ("serve", "bundle"):
        wanted = {path.relative_to(source) for path in (source / folder).rglob("*") if path.is_file()}
        assert wanted == {
            path.relative_to(bento / "src") for path in (bento / "src" / folder).rglob("*") if path.is_file()
        }
    assert "serve.service" in (bento / "bento.yaml").read_text()


def test_a_bento_asks_for_what_the_project_asks_for_to_serve() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["serve"]}
    packed = set(yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"])
    assert packed <= wanted
    # BentoML adds itself; tqdm shows the progress of training.
    assert {name.partition(">")[0] for name in wanted - packed} == {"bentoml", "tqdm"}
