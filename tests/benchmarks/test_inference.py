"""What benchmarks/inference.py times computes what it should, and its table is arithmetic on the times."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

import inference
import inference_gpu
import onnx_exactness
from inference_models import Folded, ann_of, export_ann, naive_unroll, quantize_ann
from inference_variants import Answer, Variant, Workshop, answers, every_step
from live_networks import write_checkpoint
from small_graphs import dyadic_images, every_node

from export import graph as g
from export import reference
from export.exits_view import markdown
from export.images import RealImages, real_images
from serve.exits import Exit, running_mean, steps_needed
from serve.session import cuda_devices
from train.checkpoint import Checkpoint, CheckpointError
from train.config import NetConfig


ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
GRAPHS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "one step": {"T": 1},
    "mean": {"mean": True, "side": (16, 9), "T": 3},
    "no decay of the input": {"decay_input": False, "tau": 4.0},
    "no leak": {"decay_input": False, "tau": float("inf")},
    "reset": {"v_reset": -0.25, "T": 5},
    "reset, no decay of the input": {"v_reset": 0.25, "decay_input": False, "groups": 1},
}


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def graph(request: pytest.FixtureRequest) -> g.Graph:
    """In float32 its sums are exact whatever their order: see small_graphs."""
    return every_node(seed=3, **GRAPHS[request.param])


def meaning(graph: g.Graph, images: np.ndarray) -> np.ndarray:
    """The logits [T, B, K] in float64; all that is compared with them has spikes in every layer."""
    values = reference.run(graph, images.astype(np.float64))
    assert all(0 < values[node.name].mean() < 1 for node in graph.lif_layers)
    last = values[graph.output.name]
    return np.broadcast_to(last, (graph.T, *last.shape[1:]))


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    content = model if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_graph_in_torch_is_the_graph(graph: g.Graph, batch: int, half: bool) -> None:
    images = dyadic_images(graph, batch=batch)
    with torch.no_grad():
        logits = Folded(graph, half=half)(torch.from_numpy(images))
    assert logits.dtype == torch.float32
    np.testing.assert_array_equal(logits.numpy(), meaning(graph, images))


def test_half_precision_is_for_layers_that_read_spikes() -> None:
    graph = every_node()
    network, static = Folded(graph, half=True), g.is_static(graph)
    for i, node in enumerate(graph.nodes):
        if isinstance(node, g.Conv | g.Dense):
            wanted = torch.float32 if static[node.name] else torch.float16
            assert network.get_buffer(f"a{i}").dtype == network.get_buffer(f"b{i}").dtype == wanted


@pytest.mark.parametrize("batch", [1, 5])
def test_the_naive_unroll_is_the_graph(graph: g.Graph, batch: int) -> None:
    images = dyadic_images(graph, batch=batch)
    (logits,) = session(naive_unroll(graph)).run(None, {"image": images})
    np.testing.assert_array_equal(logits, meaning(graph, images))


def test_the_naive_unroll_repeats_every_layer_and_no_weights() -> None:
    models = {T: naive_unroll(every_node(T=T)) for T in (1, 4)}
    for kind in ("Conv", "Gemm", "GreaterOrEqual"):
        number = {T: sum(node.op_type == kind for node in model.graph.node) for T, model in models.items()}
        assert number[4] == 4 * number[1] > 0, kind
    assert len(models[4].graph.initializer) == len(models[1].graph.initializer)


@pytest.fixture(scope="module")
def digits(student: Path) -> RealImages:
    return real_images(Checkpoint.load_student(student), split="test", limit=120)


def workshop(student: Path, folder: Path, **settings: Any) -> Workshop:
    defaults: dict[str, Any] = {
        "checkpoint": Checkpoint.load_student(student),
        "path": student,
        "folder": folder,
        "threads": 1,
        "teacher": student.parent / "teacher" / "teacher.pt",
        "scales": None,
        "calibration": 32,
        "tolerance": 0.05,
        "val_images": None,
        "data_root": None,
    }
    return Workshop(**(defaults | settings))


def test_every_variant_answers_real_images(tmp_path: Path, student: Path, digits: RealImages) -> None:
    made = workshop(student, tmp_path)
    network, preprocess = made.checkpoint.network(), made.checkpoint.preprocess
    with torch.no_grad():
        truth = network(preprocess(torch.from_numpy(digits.images))).mean(0).numpy().argmax(-1)
    for name in inference.VARIANTS:
        variant = made.make(name)
        found = answers(variant, digits.images, batch_size=17)
        assert found.logits.shape == (len(digits), 10)
        ann, any_time = name.startswith("ann"), name.startswith("anytime")
        assert any_time or set(found.steps) == {1 if ann else 4}
        assert variant.varies == any_time
        if not ann:  # float32 may flip a spike, int8 is another network, and any-time has fewer steps
            assert (found.logits.argmax(-1) == truth).mean() >= (0.99 if name in inference.VARIANTS[:4] else 0.9), name
    with pytest.raises(ValueError, match="unknown variant 'ours'"):
        made.make("ours")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("batch", [1, 8])
def test_an_any_time_row_stops_where_its_exit_says(
    tmp_path: Path, student: Path, digits: RealImages, precision: str, batch: int
) -> None:
    made = workshop(student, tmp_path)
    variant = made.make(f"anytime_{precision}")
    about = variant.about["exit"]
    found = answers(variant, digits.images, batch_size=batch)
    (logits,) = made.open(made.model(precision, "unrolled")).run(["logits"], {"image": digits.images})
    exit = Exit(about["rule"], about["threshold"], about["relax"])
    steps = steps_needed(logits, exit)
    assert 1 < steps.mean() < 4
    # Float32 sums of another batch size may end in other bits, and an image at the threshold in another step.
    same = found.steps == steps
    assert same.all() if precision == "int8" else same.mean() > 0.97
    wanted = running_mean(logits)[steps - 1, np.arange(len(steps))]
    close = np.isclose(found.logits, wanted, rtol=0, atol=1e-4).all(1)
    assert close.all() if precision == "int8" else close.mean() > 0.97


def test_sessions_have_the_threads_that_are_asked_for(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for before in ("7", None):
        monkeypatch.setenv("TSERVE_THREADS", before) if before else monkeypatch.delenv("TSERVE_THREADS")
        made = workshop(student, tmp_path, threads=3)
        opened = made.open(made.model("fp32", "unrolled"))
        assert opened.get_session_options().intra_op_num_threads == 3
        assert os.environ.get("TSERVE_THREADS") == before


def test_an_exit_is_chosen_on_validation_images_and_says_what_it_did(tmp_path: Path, student: Path) -> None:
    made = workshop(student, tmp_path, val_images=70)
    val = real_images(made.checkpoint, split="val", limit=70)
    exit, about = made.exit("fp32")
    with torch.no_grad():
        logits = made.checkpoint.network()(made.checkpoint.preprocess(torch.from_numpy(val.images))).numpy()
    steps, right = steps_needed(logits, exit), running_mean(logits).argmax(-1) == val.labels
    assert about["calibrated_on"] == {"dataset": "digits", "split": "val", "images": 70}
    assert about["val_mean_steps"] == pytest.approx(steps.mean(), abs=1e-2)
    assert about["val_accuracy_of_all_steps"] == pytest.approx(right[-1].mean(), abs=2e-2)
    assert about["val_accuracy"] >= about["val_accuracy_of_all_steps"] - 0.05


def test_int8_takes_the_scales_of_a_net_file(tmp_path: Path, student: Path) -> None:
    from export import to_loihi
    from export.verify_netx import twin_with_scales
    from hardware import netx

    path = tmp_path / "student.pt"
    Checkpoint.load_student(student).save(path)
    to_loihi.main(to_loihi.LoihiConfig(checkpoint=path, samples=1, calibration=5, test_images=5, verify="reference"))
    made = workshop(path, tmp_path, scales=path.with_suffix(".net"))
    model = onnx.load(made.model("int8", "step"))
    (written,) = (json.loads(item.value) for item in model.metadata_props if item.key == "scales")
    _, wanted = twin_with_scales(made.checkpoint, netx.read(path.with_suffix(".net")), "student.net")
    assert written == json.loads(json.dumps(dataclasses.asdict(wanted)))


def test_the_ann_is_the_teacher_where_it_has_the_students_layers(tmp_path: Path, student: Path, teacher: Path) -> None:
    loaded, taught = Checkpoint.load_student(student), Checkpoint.load_teacher(teacher)
    same = dataclasses.replace(loaded.net, spiking=False)
    assert taught.net.width != same.width
    ann, weights = ann_of(loaded, teacher)
    assert (ann.net, weights) == (same, "untrained")
    assert ann_of(loaded, tmp_path / "missing.pt")[1] == "untrained"
    dataclasses.replace(ann, provenance=taught.provenance).save(tmp_path / "teacher.pt")
    ann, weights = ann_of(loaded, tmp_path / "teacher.pt")
    assert (ann.net, weights) == (same, "teacher")
    with pytest.raises(CheckpointError, match="not a teacher"):
        ann_of(loaded, student)


def test_the_anns_models_are_the_ann(tmp_path: Path, teacher: Path, digits: RealImages) -> None:
    ann = Checkpoint.load_teacher(teacher)
    export_ann(ann, tmp_path / "ann.onnx")
    calibration = real_images(ann, split="train", limit=32).images
    quantize_ann(tmp_path / "ann.onnx", tmp_path / "ann.int8.onnx", calibration)
    with torch.no_grad():
        wanted = ann.network()(ann.preprocess(torch.from_numpy(digits.images))).numpy()
    for batch in (1, len(digits)):
        (logits,) = session(tmp_path / "ann.onnx").run(None, {"image": digits.images[:batch]})
        np.testing.assert_allclose(logits, wanted[:batch], rtol=0, atol=1e-4)
    (logits,) = session(tmp_path / "ann.int8.onnx").run(None, {"image": digits.images})
    assert (logits.argmax(-1) == wanted.argmax(-1)).mean() > 0.95
    assert not np.allclose(logits, wanted, rtol=0, atol=1e-4)
    model = onnx.load(tmp_path / "ann.int8.onnx")
    synapses = [m for m in ann.network().modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    int8 = [w for w in model.graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1]
    assert sorted(list(m.weight.shape) for m in synapses) == sorted(list(w.dims) for w in int8)
    assert all(list(scale_of(w, model).dims) == list(w.dims[:1]) for w in int8)  # one a channel


def scale_of(weight: onnx.TensorProto, model: onnx.ModelProto) -> onnx.TensorProto:
    """What a quantised weight is multiplied with."""
    (reader,) = (node for node in model.graph.node if weight.name in node.input)
    return next(array for array in model.graph.initializer if array.name == reader.input[1])


def test_an_ann_has_one_step() -> None:
    logits = np.arange(24.0).reshape(3, 4, 2)
    assert every_step(logits[0]).steps.tolist() == [1] * 4
    np.testing.assert_array_equal(every_step(logits).logits, logits.sum(0) / 3)
    assert every_step(logits).steps.tolist() == [3] * 4


@pytest.mark.parametrize("trained", [True, False])
def test_accuracy_is_of_the_images_that_are_judged(trained: bool) -> None:
    labels = np.array([0, 1, 1, 0])
    steps = np.array([1, 2, 4, 4])

    def answer(images: np.ndarray) -> Answer:
        return Answer(np.eye(2)[[0, 1, 0, 0]], steps)

    variant = Variant(answer=answer, trained=trained, about={"exit": 3})
    found = inference.answered(variant, np.zeros((4, 1), np.float32), labels, judged=slice(3), timed=slice(2))
    wanted = pytest.approx(2 / 3) if trained else None
    assert found == {"accuracy": wanted, "mean_steps": 7 / 3, "mean_steps_of_timed": 1.5, "exit": 3}


@pytest.mark.parametrize(("varies", "calls"), [(True, [6, 6, 6]), (False, [2, 2, 2])])
def test_an_any_time_row_is_timed_over_all_images_and_the_others_over_the_next(varies: bool, calls: list[int]) -> None:
    seen: list[list[int]] = []

    def answer(images: np.ndarray) -> Answer:
        seen.append(images.astype(int).ravel().tolist())
        return Answer(images, np.ones(len(images)))

    images = np.arange(11.0, dtype=np.float32).reshape(11, 1)
    variants = {"a": Variant(answer=answer, varies=varies)}
    rounds = inference.measure(variants, images, batch_sizes=(2,), rounds=3, seconds=0)
    batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert len(seen) == sum(calls)
    for number, calls_of_round in enumerate(calls):
        own, seen = seen[:calls_of_round], seen[calls_of_round:]
        start = sum(calls[:number])
        assert own == list(itertools.islice(itertools.cycle(batches), start, start + calls_of_round))
        timed = own[1:]  # the first call is not timed
        assert not varies or sorted(timed) == batches
        assert rounds[number]["2"]["a"]["images"] == 2 * len(timed)


def test_times_are_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 0.0, "cpu": 0.0}

    def answer(images: np.ndarray) -> Answer:
        now["wall"] += 0.1 * len(images)
        now["cpu"] += 0.03 * len(images)
        return Answer(images, images)

    monkeypatch.setattr(inference.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(inference.time, "process_time", lambda: now["cpu"])
    queue = itertools.repeat(np.zeros((8, 1), np.float32))
    found = inference.timing(Variant(answer=answer), queue, whole=1, seconds=2.0)
    assert found == {"cpu_seconds": pytest.approx(0.03), "wall_seconds": pytest.approx(0.1), "images": 24}
    assert inference.timing(Variant(answer=answer), queue, whole=5, seconds=2.0)["images"] == 40


def test_ratios_are_taken_within_a_round() -> None:
    def found(**cpu: float) -> dict[str, Any]:
        return {"1": {name: {"cpu_seconds": value, "wall_seconds": 2 * value} for name, value in cpu.items()}}

    rounds = [found(fp32=1, int8=0.5), found(fp32=4, int8=1), found(fp32=2, int8=1.5)]
    row = inference.summarise(rounds, "int8")["batches"]["1"]
    assert row["cpu_seconds"] == 1
    assert row["wall_seconds"] == 2
    assert row["cpu_seconds_over_fp32"] == {"median": 0.5, "min": 0.25, "max": 0.75}
    assert not any("ann" in key for key in row)
    assert "wall_seconds_over_int8" in inference.summarise(rounds, "fp32", bases=("int8",))["batches"]["1"]


def run(script: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


QUICK = ("--rounds", "2", "--seconds", "0", "--images", "40")


def test_the_command_writes_a_table_of_every_variant(tmp_path: Path, student: Path) -> None:
    flags = ("--timed", "16", "--val_images", "60", "--calibration", "16")
    done = run("inference.py", str(student), *QUICK, *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == "inference-digits-vgg_small-T4.json"
    content = json.loads(path.read_text())
    assert tuple(content["rows"]) == inference.VARIANTS
    assert content["images"] == {"dataset": "digits", "accuracy": 40, "timed": 16}
    for name, row in content["rows"].items():
        assert (row["accuracy"] is None) == name.startswith("ann"), name  # the shared teacher is wider
        assert list(row["batches"]) == ["1", "8"]
        assert all(size["cpu_seconds"] > 0 for size in row["batches"].values())
        assert 1 <= row["mean_steps"] <= 4
    assert content["rows"]["ann_int8"]["weights"] == "untrained"
    assert content["rows"]["fp32"]["batches"]["8"]["cpu_seconds_over_fp32"] == {"median": 1, "min": 1, "max": 1}
    assert str(student.parent) not in path.read_text()
    table = inference.table(content)
    assert table in done.stdout
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in rows[1:]] == [f"| {title}" for title in inference.TITLES.values()]
    assert len({line.count("|") for line in rows}) == 1
    assert table.count("chosen on 60 validation images") == 2


def test_a_student_without_an_integer_twin_is_measured_in_floats(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "student.pt", NetConfig(width=0.25, in_channels=1, size=8, v_reset=-0.5))
    config = inference.Config(
        checkpoint=path, rounds=1, seconds=0, images=8, timed=8, variants=("fp32", "int8"), out=tmp_path
    )
    content = inference.main(config)
    assert "v_reset" in content["rows"]["int8"]["error"]
    assert list(content["rounds"][0]["1"]) == ["fp32"]
    assert "| ours int8 | " + content["rows"]["int8"]["error"] in inference.table(content)


def test_what_is_asked_wrongly_is_named(tmp_path: Path, student: Path, teacher: Path) -> None:
    for flags, message in (
        (("--variants", "int9"), "unknown variant 'int9'; did you mean int8"),
        (("--timed", "4"), "timed images (4) must fill the largest batch, 8"),
        (("--rounds", "0"), "rounds must be at least 1, got 0"),
    ):
        done = run("inference.py", str(student), *flags, folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    with pytest.raises(CheckpointError, match="not a spiking student"):
        inference.main(inference.Config(checkpoint=teacher))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a CUDA device")
def test_without_a_gpu_the_gpus_benchmark_says_so(tmp_path: Path, student: Path) -> None:
    done = run("inference_gpu.py", str(student), folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --device cuda: the driver sees no CUDA device" in done.stderr


def test_the_gpus_benchmark_runs_on_the_cpu_as_far_as_it_can(tmp_path: Path, student: Path) -> None:
    kinds = ("onnx_fp32", "onnx_fp16", "graphs_fp32", "torch_fp32", "torch_fp16")
    flags = ("--batch_sizes", "1", "16", "--device", "cpu", "--variants", *kinds)
    done = run("inference_gpu.py", str(student), *QUICK, *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results" / "inference_gpu-digits-vgg_small-T4.json").read_text())
    rows = content["rows"]
    assert tuple(rows) == kinds
    assert rows["graphs_fp32"] == {"error": "CUDA graphs need --device cuda"}
    assert content["images"]["number"] == 32
    found = [row["accuracy"] for row in rows.values() if "accuracy" in row]
    assert len(found) == 4
    assert max(found) - min(found) <= 2 / 32
    assert inference_gpu.table(content) in done.stdout


def test_the_onnx_document_says_what_was_measured() -> None:
    document = (ROOT / "docs/onnx.md").read_text()
    exact = json.loads((ROOT / "results/onnx_exactness.json").read_text())["rows"]
    assert {(row["spike_mismatches"], row["largest_logit_difference"]) for row in exact} == {(0, 0.0)}
    assert {row["samples"] for row in exact} == {64}
    assert {row["net"]["name"] for row in exact} >= {"vgg_small", "vgg11", "resnet20", "resnet18", "sew_resnet18"}
    assert "\n".join(onnx_exactness.table(exact)) in document
    measured = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("inference-*.json"))]
    assert {content["student"]["net"]["name"] for content in measured} == {"resnet18", "vgg_small"}
    for content in measured:
        assert inference.table(content) in document
    exits = json.loads((ROOT / "results/exits-cifar10-vgg_small-T4.json").read_text())
    assert markdown(exits["int8"]) in document
