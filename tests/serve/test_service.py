"""The service as users meet it: a `bentoml serve` process and HTTP."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from serving_process import ROOT, free_port
from synthetic import LABELS, THRESHOLD, draw, png

from serve.exits import Exit, steps_needed
from serve.session import cuda_devices
from serve.web.schema import Classification


GOOD = {"image": ("picture.png", png(draw(1)), "image/png")}


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def session(bundle_dir: Path) -> ort.InferenceSession:
    return ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(-1, keepdims=True)


@pytest.mark.parametrize("index", range(4))
def test_classify_says_what_onnxruntime_says(client: httpx.Client, session: ort.InferenceSession, index: int) -> None:
    pixels = draw(index)
    answer = client.post("/classify", files={"image": ("x.png", png(pixels), "image/png")}).json()
    image = pixels[None, None].astype(np.float32) / np.float32(255)
    logits, rates = (output[:, 0] for output in session.run(["logits", "spike_rates"], {"image": image}))
    steps = int(steps_needed(logits[:, None], Exit("confidence", THRESHOLD))[0])
    logits, rates = logits[:steps], rates[:steps]
    probs = softmax(logits.mean(axis=0))
    assert answer["label"] == LABELS[probs.argmax()]
    assert answer["probability"] == pytest.approx(probs.max(), abs=1e-6)
    assert {g["label"]: g["probability"] for g in answer["top_k"]} == pytest.approx(
        dict(zip(LABELS, probs, strict=True)), abs=1e-6
    )
    assert len(answer["per_timestep"]) == steps
    for t, row in enumerate(answer["per_timestep"]):
        alone, running = softmax(logits[t]), softmax(logits[: t + 1].mean(axis=0))
        assert row["t"] == t + 1
        assert row["step"] == {"label": LABELS[alone.argmax()], "probability": pytest.approx(alone.max(), abs=1e-6)}
        assert row["running"]["probability"] == pytest.approx(running.max(), abs=1e-6)
    assert answer["spike_rates"] == {
        "features.0.lif": pytest.approx(rates[:, 0].tolist()),
        "features.1.lif": pytest.approx(rates[:, 1].tolist()),
    }
    assert answer["energy_J"] == pytest.approx(answer["sops"] * 9e-13 + answer["macs"] * 4.6e-12)
    assert answer["steps_used"] == steps
    assert answer["model"] == "shapes-synthetic-T3"
    assert answer["latency_s"] > 0


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: {"images": array}], ids=["array", "object"])
def test_classify_batch_gives_each_image_its_single_answer(client: httpx.Client, wrap: object) -> None:
    array = [[(draw(i) / 255).tolist()] for i in range(4)]
    answers = client.post("/classify_batch", json=wrap(array)).json()
    for i, answer in enumerate(answers):
        single = client.post("/classify", files={"image": ("x.png", png(draw(i)), "image/png")}).json()
        del answer["latency_s"], single["latency_s"]
        assert answer == single
    assert len({answer["energy_J"] for answer in answers}) == 4
    assert len({answer["steps_used"] for answer in answers}) > 1


def test_model_describes_the_bundle(client: httpx.Client) -> None:
    about = client.get("/model").json()
    assert about["labels"] == list(LABELS)
    assert about["T"] == 3
    assert about["input"] == {"channels": 1, "height": 8, "width": 8}
    assert about["provider"] in ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert about["precision"] == "fp32"
    assert about["exit"] == {"rule": "confidence", "threshold": THRESHOLD, "relax": 0.0}
    assert about["exits"]["fp32"]["table"][0]["mean_steps"] == 2
    assert "files" not in about


def test_bentomls_own_client_works(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(draw(1)))
    with bentoml.SyncHTTPClient(server) as client:
        answer = Classification.model_validate(client.classify(image=tmp_path / "x.png"))
        assert len(client.classify_batch(images=[[(draw(1) / 255).tolist()]])) == 1
    assert answer.label in LABELS


def test_the_api_document_lists_the_endpoints(client: httpx.Client) -> None:
    paths = client.get("/docs.json").json()["paths"]
    assert {"/classify", "/classify_batch", "/model", "/metrics", "/readyz"} <= paths.keys()
    assert {"multipart/form-data", "application/json"} <= paths["/classify"]["post"]["requestBody"]["content"].keys()


def test_requests_are_counted(client: httpx.Client) -> None:
    """Each once; whoever has an answer may ask for the metrics before it is counted."""

    def counted() -> float:
        series = 'tserve_requests_total{endpoint="/classify",status="200"}'
        seen = [-1.0]
        while len(seen) < 3 or len(set(seen[-3:])) > 1:
            time.sleep(0.05)
            lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
            seen.append(float(lines[0].split()[-1]) if lines else 0.0)
        return seen[-1]

    before = counted()
    for _ in range(3):
        client.post("/classify", files=GOOD)
    assert counted() == before + 3


def text(content: bytes | Iterator[bytes]) -> dict:
    return {"url": "/classify_batch", "content": content, "headers": {"content-type": "application/json"}}


def images(array: object) -> dict:
    return text(json.dumps(array).encode())


def picture(data: bytes, field: str = "image") -> dict:
    return {"url": "/classify", "files": {field: ("picture.png", data, "image/png")}}


def large_png() -> bytes:
    file = io.BytesIO()
    Image.new("1", (4001, 4000)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "text for an image": (400, "bad_image", picture(b"hello")),
    "an empty file": (400, "bad_image", picture(b"")),
    "a cut image": (400, "bad_image", picture(png(draw(0))[:50])),
    "16 megapixels and a row": (400, "bad_image", picture(large_png())),
    "another field": (422, "unknown_field", picture(png(draw(0)), "img")),
    "a binary field of another name": (422, "unknown_field", {"url": "/classify", "files": {"x": b"\xff\xfe"}}),
    "a form without a file": (415, "wrong_content_type", {"url": "/classify", "data": {"image": "x"}}),
    "a URL for a file": (422, "not_a_file", {"url": "/classify", "files": {"image": (None, "http://127.0.0.1:1/x")}}),
    "two images": (422, "too_many_images", {"url": "/classify", "files": [("image", b"1"), ("image", b"2")]}),
    "an empty body": (415, "wrong_content_type", {"url": "/classify"}),
    "a form without a boundary": (
        400,
        "bad_multipart",
        {"url": "/classify", "content": b"--x", "headers": {"content-type": "multipart/form-data"}},
    ),
    "a broken form": (
        400,
        "bad_multipart",
        {"url": "/classify", "content": b"hello", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ),
    "no JSON": (400, "bad_json", text(b"{")),
    "an empty JSON body": (400, "bad_json", text(b"")),
    "bytes that are no text": (400, "bad_json", text(b"\xff\xfe\xff")),
    "NaN": (400, "bad_json", images([[[[float("nan")] * 8] * 8]])),
    "a number beyond floats": (
        422,
        "bad_array",
        text(json.dumps([[[[0.5] * 8] * 8]]).replace("0.5", "1e999", 1).encode()),
    ),
    "a deep nest": (400, "bad_json", text(b"[" * 100_000)),
    "a nest of 100 axes": (422, "bad_array", text(b"[" * 100 + b"1" + b"]" * 100)),
    "a wrong shape": (422, "bad_array", images([[[0.5] * 8] * 8])),
    "no images": (422, "bad_array", images([])),
    "a ragged list": (422, "bad_array", images([[[[0.5] * 8] * 7 + [[0.5] * 7]]])),
    "words": (422, "bad_array", images([[[["0.5"] * 8] * 8]])),
    "null": (422, "bad_body", images(None)),
    "values over 1": (422, "bad_array", images([[[[255] * 8] * 8]])),
    "another key": (422, "missing_field", images({"pixels": []})),
    "too many images": (422, "too_many_images", images([[[[0] * 8] * 8]] * 257)),
    "JSON as a form": (400, "bad_image", {"url": "/classify_batch", "files": {"images": b"[]"}}),
    "a pickle": (
        415,
        "unsupported_media_type",
        {"url": "/classify", "content": b"\x80", "headers": {"content-type": "application/vnd.bentoml+pickle"}},
    ),
    "11 MB": (413, "body_too_large", picture(bytes(11 << 20))),
    "11 MB in chunks": (413, "body_too_large", text(bytes(1 << 20) for _ in range(11))),
    "no such path": (404, "not_found", {"url": "/classifier"}),
    "POST where GET is meant": (405, "method_not_allowed", {"url": "/model"}),
}


@pytest.mark.parametrize(("status", "code", "request_"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_answered_and_the_server_goes_on(
    client: httpx.Client, status: int, code: str, request_: dict
) -> None:
    response = client.post(**request_)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["hint"]
    assert client.post("/classify", files=GOOD).status_code == 200


def test_the_page_is_told_in_a_sentence(client: httpx.Client) -> None:
    said = client.post("/ui/gradio_api/upload", files={"files": ("x.png", bytes(11 << 20))})
    assert said.status_code == 413
    assert said.json() == {"error": "The request body is over 10 MB: send a smaller image, or fewer images at a time."}


def ended(env: dict[str, str]) -> str:
    """What `bentoml serve` says on stderr before it ends with status 2, which it must, in one line."""
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_a_missing_bundle_ends_the_command_with_one_message(serve_env: dict[str, str], tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    said = ended(serve_env | {"TSERVE_BUNDLE": missing})
    assert said.startswith(f"error: {missing}: no bundle here")
    assert "python -m export.bundle CKPT" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TSERVE_PRECISION", "int8", "error: TSERVE_PRECISION: this bundle has fp32, not 'int8'"),
        ("TSERVE_EXIT_THRESHOLD", "2", "error: TSERVE_EXIT_THRESHOLD must be a number in [0, 1]"),
        ("TSERVE_PROVIDER", "tpu", "error: TSERVE_PROVIDER must be one of auto, cpu, cuda, tensorrt"),
        ("TSERVE_MODEL", "typo", "error: the default model cannot be 'typo'; there are: shapes-synthetic-T3\n"),
        ("TSERVE_WATCH", "1e308", "error: TSERVE_WATCH must be a number of seconds, 0 to 86400, got '1e308'\n"),
    ],
)
def test_a_wrong_setting_ends_the_command_with_one_message(
    serve_env: dict[str, str], name: str, value: str, said: str
) -> None:
    told = ended(serve_env | {name: value})
    assert told.startswith(said)
    assert told.count("\n") == 1


def test_two_bundles_of_one_name_end_the_command_with_one_message(serve_env: dict[str, str], bundle_dir: Path) -> None:
    told = ended(serve_env | {"TSERVE_BUNDLE": f"{bundle_dir},{bundle_dir}"})
    assert told == f"error: {bundle_dir}: {bundle_dir} has the model's name already, 'shapes-synthetic-T3'\n"


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine's CUDA device is there")
def test_a_missing_device_ends_the_command_with_one_message(serve_env: dict[str, str]) -> None:
    assert ended(serve_env | {"TSERVE_PROVIDER": "cuda"}).startswith("error: provider cuda: the driver sees no CUDA")
