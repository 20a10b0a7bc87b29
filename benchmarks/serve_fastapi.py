"""The alternative that benchmarks/serve_load.py holds the service against: FastAPI, as one writes it in an hour.

MODEL=bundle/model.onnx uvicorn --app-dir benchmarks serve_fastapi:app
"""

import json
import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image
from pydantic import BaseModel


class Answer(BaseModel):
    """An image's class, and the five most probable ones."""

    label: str
    probability: float
    top_k: dict[str, float]


options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
provider = os.environ.get("PROVIDER", "CPUExecutionProvider")
if provider != "CPUExecutionProvider":
    ort.preload_dlls()
session = ort.InferenceSession(os.environ["MODEL"], options, providers=[provider])
assert session.get_providers()[0] == provider, "onnxruntime has taken another provider; its log says why"
_, channels, height, width = session.get_inputs()[0].shape
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
app = FastAPI()


@app.post("/classify")
def classify(image: UploadFile) -> Answer:
    """Classify an image file. FastAPI runs this in a pool of threads, since it is no coroutine."""
    try:
        picture = Image.open(image.file).convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, Image.DecompressionBombError):
        raise HTTPException(400, "not an image") from None
    pixels = np.asarray(picture, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) / 255
    (logits,) = session.run(["logits"], {"image": np.ascontiguousarray(pixels)})
    mean = logits.mean(axis=0)[0]
    probs = np.exp(mean - mean.max()) / np.exp(mean - mean.max()).sum()
    best = probs.argsort()[:-6:-1]
    top_k = {labels[k]: float(probs[k]) for k in best}
    return Answer(label=labels[best[0]], probability=float(probs[best[0]]), top_k=top_k)
