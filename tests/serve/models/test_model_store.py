"""A model of BentoML's store."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bundle_versions import VERSIONS
from serving_process import ROOT


STORE = """
import json, shutil, socket, sys
socket.socket.connect = lambda *_: sys.exit("asks the network")
import bentoml
from serve.models import Models

def create(version, folder):
    with bentoml.models.create(f"digits:{version}") as model:
        shutil.copytree(folder, model.path, dirs_exist_ok=True)
    return bentoml.models.get(f"digits:{version}").path

said, (one, two, three) = [], sys.argv[1:]
try:
    Models(["bentoml:digits"])
except ValueError as error:
    said.append(str(error))
first = create("v1", one)
served = Models(["bentoml:digits:latest"], on_change=lambda *what: said.append(what))
def look():
    served.look()
    said.append((served.default, served.get().predictor.about.name, served.get().predictor.bundle.folder.name))
look()
create("v2", two)
look()
pinned = Models(["bentoml:digits:v1"])
last = create("v3", three)
shutil.rmtree(last + "/samples")
look()
pinned.look()
assert pinned.get().predictor.about.name == "one"
bentoml.models.delete("digits:v3")
bentoml.models.delete("digits:v2")
look()
bentoml.models.delete("digits:v1")
look()
print(json.dumps(said))
"""


def test_a_model_of_bentomls_store_follows_its_newest_version(tmp_path: Path, versions: dict[str, Path]) -> None:
    """In a process of its own, as BentoML finds its home once; the network is shut."""
    env = os.environ | {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-c", STORE, *(str(versions[name]) for name in VERSIONS)]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    none, *said = json.loads(ended.stdout.splitlines()[-1])
    assert none.startswith("bentoml:digits: no Models with name 'digits' exist")
    assert none.endswith("; `bentoml models list` shows what there is")
    assert said == [
        ["digits", "loaded"],
        ["digits", "one", "v1"],
        ["digits", "swapped"],
        ["digits", "two", "v2"],
        ["digits", "refused"],  # v3 lacks a file
        ["digits", "two", "v2"],
        ["digits", "swapped"],
        ["digits", "one", "v1"],
        ["digits", "one", "v1"],  # gone from the store, and served
    ]
