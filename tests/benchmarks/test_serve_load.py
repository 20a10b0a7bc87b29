"""What is made of measurements is arithmetic on them, and the contenders compute what they should."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

import serve_load_table
import serve_raw
import serve_trials
from serve_client import Plan, Report, Sample, run
from serve_figures import at_least, at_most, latencies, over_rounds, percentile, summary
from serve_process import running
from serve_requests import multipart
from synthetic import LABELS, SIZE, T, png, write_bundle


ROOT = Path(__file__).parents[2]
PLAIN = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
PICTURES = [png(np.random.default_rng(i).integers(0, 256 >> i % 4, (SIZE, SIZE)).astype(np.uint8)) for i in range(8)]


def sample(seconds: float = 0.01, *, status: int = 200, began: float = 0.0, error: str = "", **more: Any) -> Sample:
    return Sample(began, more.get("sent", began), seconds, status, error, 0, more.get("id", ""), more.get("answer", {}))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_percentiles_are_values_of_nearest_rank(values: list[float]) -> None:
    for percent in (1, 50, 95, 99, 100):
        assert percentile(sorted(values), percent) == np.percentile(values, percent, method="inverted_cdf")
    found = latencies(values)
    assert found["p50"] <= found["p95"] <= found["p99"] <= found["max"] == max(values)


def test_only_answers_200_count_as_answers() -> None:
    samples = [sample(0.001), sample(0.003), sample(9, status=503), sample(9, status=0, error="reset")]
    found = summary(Report(samples=samples, wall_s=2.0, cpu_s=0.004, loop="asyncio"))
    assert found["answers_per_s"] == 1
    assert (found["p50_ms"], found["max_ms"]) == (pytest.approx(1), pytest.approx(3))
    assert (found["failed"], found["client_cpu_s_per_request"]) == (2, 0.001)


def test_a_line_without_a_measurement_does_not_hold() -> None:
    assert not at_most("x", None, 5).holds
    assert not at_least("x", None, 5).holds
    assert at_most("x", 5, 5).holds
    assert not at_least("x", 4.9, 5).holds


def rounds() -> list[dict[str, Any]]:
    """Two rounds, the second twice as slow for everybody: ratios within a round do not see it."""

    def row(rate: float, ms: float, slow: float) -> dict[str, Any]:
        latency = {f"p{p}_ms": ms * slow for p in (50, 95, 99)}
        return {"answers_per_s": rate / slow, "requests": 10, "failed": 0, "cpu_ms": ms, **latency}

    return [
        {
            callers: {
                "raw": row(100 * least, 10, slow),
                "service": row(95, 14, slow),
                "fastapi": row(90, 13, slow),
            }
            for callers, least in (("1", 1), ("32", 0.5))
        }
        for slow in (1.0, 2.0)
    ]


def test_ratios_are_taken_within_a_round() -> None:
    found = serve_load_table.ratios(rounds())
    one = found["1"]["service/raw"]
    assert one["answers"] == {"median": 0.95, "min": 0.95, "max": 0.95}
    assert one["p50_added_ms"] == {"median": 6, "min": 4, "max": 8}
    assert found["32"]["service/raw"]["answers"]["median"] == pytest.approx(1.9)
    assert found["32"]["service/raw"]["answers_of_best"]["median"] == pytest.approx(0.95)
    assert "service_anytime/raw_anytime" not in found["1"]


def test_lines_fail_where_the_service_is_slower() -> None:
    several = rounds()
    assert {line.claim.split(":")[0] for line in serve_load_table.lines(several) if not line.holds} == {
        "service/raw, 1 caller"
    }
    for each in several:
        each["32"]["service"] |= {"answers_per_s": 1.0, "failed": 1}
    failing = [line.claim.split(":")[0] for line in serve_load_table.lines(several) if not line.holds]
    assert "service/raw, 32 callers" in failing
    assert "service/fastapi, 32 callers" in failing
    assert "requests to the service that were not answered 200" in failing


def test_the_table_is_drawn_from_the_json() -> None:
    several = rounds()
    content = {
        "settings": {"precision": "int8", "provider": "cpu", "server_cores": (0,), "threads": 1, "rounds": 2},
        "model": {"name": "net", "T": 4},
        "images": {"number": 20, "answers": {"service": {"mean_steps": 4.0}}},
        "machine": {"cpu": "a processor"},
        "rows": serve_load_table.rows(several),
        "ratios": serve_load_table.ratios(several),
    }
    drawn = serve_load_table.table(json.loads(json.dumps(content)))
    assert "| 1 | service, T steps | 71.2 (47.5 to 95.0) | 21.00 (14.00 to 28.00) |" in drawn
    assert "| 0 of 20 |" in drawn
    assert "| 1 | service/fastapi | 1.056 (1.056 to 1.056) |" in drawn
    assert "net, int8, T=4, cpu, a processor" in drawn


def test_a_figure_that_a_round_lacks_has_no_median() -> None:
    assert over_rounds([1.0, None]) is None
    assert over_rounds([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_recovery_is_where_ten_in_a_row_are_as_fast_as_before() -> None:
    slow = [sample(0.5, began=0.1 * i) for i in range(10)]
    refused = [sample(0.01, began=1 + 0.1 * i, status=503) for i in range(5)]
    normal = [sample(0.01, began=2 + 0.1 * i) for i in range(20)]
    assert serve_trials.recovered([*slow, *refused, *normal], 0.0, normal_s=0.01) == pytest.approx(2)
    assert serve_trials.recovered(normal, 2.55, normal_s=0.01) == pytest.approx(0.05)
    assert serve_trials.recovered([*normal[:9], refused[0]], 0.0, normal_s=0.01) is None
    assert serve_trials.recovered(normal, 0.0, normal_s=0.005) is None


def test_growth_is_held_against_the_memory_after_the_first_minute() -> None:
    seconds = [float(s) for s in range(1, 121)]
    rss = [s if s < 50 else 100 for s in range(1, 121)]
    assert serve_trials.grown(seconds, rss, after_s=60) == (100, 0)
    rss[100] = 107
    assert serve_trials.grown(seconds, rss, after_s=60)[1] == pytest.approx(0.07)
    assert serve_trials.grown(seconds[:50], rss[:50], after_s=60)[1] is None


def test_only_what_was_sent_before_the_signal_can_be_lost() -> None:
    samples = [
        sample(1.0, began=1.0, id="t-0"),
        sample(1.0, began=1.5, id="t-1"),
        sample(1.0, began=1.6, id="t-2", status=0, error="closed"),
        sample(1.0, began=1.7, id="t-3", status=503),
        sample(1.0, began=2.5, id="t-4", status=0, error="reset"),
        sample(1.0, began=1.8, sent=0.0, id="t-5", status=0, error="connect"),
    ]
    found = serve_trials.lost(samples, 2.0, {"t-0", "t-4", "other", None}, "t-")
    assert (found["lost"], found["how"], found["refused"]) == (1, ["closed"], 1)
    assert (found["logged"], found["lost_of_logged"], found["under_way"]) == (2, 1, 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("swap") / "source")


def test_raw_runs_are_counted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_raw, "_bundle", None)
    serve_raw.prepare(source, "fp32", 1, PICTURES[:3], "CPUExecutionProvider", ())
    report = serve_raw.measure("all_steps", callers=3, number=30, seconds=60)
    assert sorted(s.request for s in report.samples) == [0] * 10 + [1] * 10 + [2] * 10
    assert {s.answer["steps_used"] for s in report.samples} == {T}
    assert serve_raw.measure("anytime", callers=2, number=10**9, seconds=0.1).wall_s < 5
    with pytest.raises(ValueError, match="has fp32, not 'int8'"):
        serve_raw.described(source, "int8")


def test_the_alternative_answers_as_onnxruntime_does(source: Path) -> None:
    """Over HTTP, under uvicorn, as it is measured."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "benchmarks"), "serve_fastapi:app", "--port"]
    environment = {"MODEL": str(source / "model.onnx"), "PATH": "/usr/bin:/bin"}
    raw = serve_raw.open_bundle(source, "fp32", threads=1, pictures=PICTURES)
    session = ort.InferenceSession(source / "model.onnx", providers=["CPUExecutionProvider"])
    with running(command, environment, ready="/openapi.json") as server:
        requests = tuple(map(multipart, PICTURES))
        report = run(Plan(port=server.port, requests=requests, number=8, fields=("label",)))
        assert run(Plan(port=server.port, requests=(multipart(b"no"),), number=1)).samples[0].status == 400
        assert server.workers == [server.process.pid]
        assert server.rss > 2**20
    assert server.process.poll() is not None
    for s in report.samples:
        (logits,) = session.run(["logits"], {"image": raw.images[s.request]})
        assert s.answer["label"] == LABELS[int(logits.mean(axis=0)[0].argmax())]


def test_a_server_that_does_not_start_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such bundle')"]
    with (
        pytest.raises(RuntimeError, match=r"ended with status 1; its log ends:\nno such bundle"),
        running(command, {}, ready="/"),
    ):
        pass


def test_everything_is_measured_in_one_run(source: Path, tmp_path: Path) -> None:
    """The command as a user gives it, on a network that takes no time."""
    out = tmp_path / "load.json"
    sizes = ("--precision", "fp32", "--callers", "1", "3", "--requests", "12", "--rounds", "2", "--out", str(out))
    names = ("raw", "service", "fastapi", "raw_anytime")
    command = [sys.executable, str(ROOT / "benchmarks/serve_load.py"), str(source), *sizes, "--contenders", *names]
    done = subprocess.run(command, cwd=tmp_path, env=PLAIN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert len(content["rounds"]) == 2
    for cell in content["rows"].values():
        assert list(cell) == list(names)
        assert all((row["requests"], row["failed"]) == (24, 0) for row in cell.values())
        assert all(row["p50_ms"]["median"] <= row["p99_ms"]["median"] for row in cell.values())
    assert content["images"]["answers"]["service"]["mean_steps"] == T
    assert content["images"]["answers"]["fastapi"]["labels_as_first"] == 1
    assert content["ratios"]["3"].keys() == {"service/raw", "service/fastapi"}
    assert serve_load_table.table(content) in done.stdout
    assert content["lines"][0]["holds"]


def test_a_precision_that_the_bundle_lacks_is_named(source: Path, tmp_path: Path) -> None:
    for script in (("serve_load.py",), ("serve_endurance.py", "soak")):
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / script[0]),
            *script[1:],
            str(source),
            "--precision",
            "int8",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=PLAIN, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert "has fp32, not 'int8'" in done.stderr
