"""What a student's spikes cost, counted by `python -m export.energy`: a command, since train imports nothing of export.

The counts lie beside the student in energy.json, and are made once.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from train import parallel
from train.checkpoint import Checkpoint


CONVENTIONS = ("tser_compat", "bn_fused", "event_exact", "memory_aware")
IMAGES = 256
"""Test images on which spikes are counted."""
MEASURES = ("tser_compat_acs", "tser_compat_macs", *(f"{name}_J" for name in CONVENTIONS))


def energies(student: Path, teacher: Path | None, seed: int, data_root: Path | None = None) -> dict[str, Any]:
    """Measures of a student's file: ACs, MACs and joules of an image, means over the first IMAGES test images; and
    under `ann_J` the joules of the ANN of the same layers by convention."""
    entries = {entry["name"]: entry for entry in counted(student, data_root)["conventions"]}
    for name in CONVENTIONS:
        if "per_image" not in entries[name]:
            raise ValueError(f"{student} has no energy by {name}: {entries[name]['unavailable']}")
    found = {name: entries[name]["per_image"] for name in CONVENTIONS}
    return {
        **{f"tser_compat_{key}": found["tser_compat"][key] for key in ("acs", "macs")},
        **{f"{name}_J": figures["energy_J"] for name, figures in found.items()},
        "tser_compat_ann_macs": found["tser_compat"]["ann"]["macs"],
        "ann_J": {name: figures["ann"]["energy_J"] for name, figures in found.items()},
        "energy_images": IMAGES,
    }


def counted(student: Path, data_root: Path | None = None) -> dict[str, Any]:
    """The energy.json of a student, made now where there is none of this student on IMAGES images under `data_root`.

    Raises ValueError with the command's own error where it fails.
    """
    path = student.parent / "energy.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        same = (found["checkpoint_sha256"], found["images"]["count"]) == (Checkpoint.load(student).sha256, IMAGES)
        if same and "conventions" in found:  # before there were several, the file had one
            return found
    parallel.say(f"energy: counting {student}")
    asked = [sys.executable, "-m", "export.energy", str(student), "--samples", str(IMAGES), "--out", str(path.parent)]
    if data_root is not None:
        asked += ["--data_root", str(data_root)]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise ValueError(f"python -m export.energy {student} ended with status {done.returncode}: {last}")
    counts: dict[str, Any] = json.loads(path.read_text())
    return counts
