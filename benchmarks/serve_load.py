"""`python benchmarks/serve_load.py BUNDLE`: what serving costs: the service, onnxruntime alone, and a FastAPI app.

All run the same models on the same cores with the same threads, and take turns in every round at every number of
callers; ratios are taken within a round. Writes one JSON file and prints the table drawn from it. The contenders:
  raw              onnxruntime alone, all T steps: threads that call the session with pixels that are ready
  service          `bentoml serve` with TSERVE_EXIT_THRESHOLD=1, all T steps: image files over HTTP
  fastapi          benchmarks/serve_fastapi.py under uvicorn, all T steps: the same image files over HTTP
  raw_anytime      onnxruntime in the step form until the image is sure by the bundle's exit
  service_anytime  `bentoml serve` as it is
"""

import contextlib
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import serve_raw
from serve_client import Apart, Plan, Report
from serve_figures import circumstances, summary
from serve_load_table import CONTENDERS, lines, ratios, rows, table
from serve_process import Server, running, service
from serve_requests import multipart, pictures

from train import cli


WARM = 16
Measure = Callable[[int, int, float], tuple[Report, float]]
"""(callers, requests, seconds) -> the run, and processor seconds of the contender."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    bundle: Annotated[Path, Positional] = Path("runs/latest/bundle")
    """The bundle that is served."""
    images: Path | None = None
    """Folder of image files, sent in turn; default: the bundle's samples."""
    precision: Literal["fp32", "fp16", "int8"] = "int8"
    """Which of the bundle's models."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """What runs it, everywhere."""
    callers: tuple[int, ...] = (1, 8, 32, 64)
    """How many ask at a time."""
    requests: int = 1000
    """Requests of a contender at one number of callers in one round."""
    seconds: float = 30.0
    """The same ends after this time at the latest."""
    rounds: int = 3
    """Times that each contender is timed."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Which contenders."""
    threads: int = 1
    """Threads of one run of the network, everywhere."""
    server_cores: tuple[int, ...] = ()
    """Cores of servers and of raw; default: all."""
    client_cores: tuple[int, ...] = ()
    """Cores of the load generator; default: all."""
    set: tuple[str, ...] = ()
    """More settings of the service, as TSERVE_RUNNERS=2."""
    out: Path | None = None
    """The JSON file; default: results/serve_load-MODEL-PRECISION.json."""

    def __post_init__(self) -> None:
        for name in ("requests", "seconds", "rounds", "threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if not self.callers or min(self.callers) < 1:
            raise ValueError(f"callers must be numbers from 1 on, got {self.callers}")
        if unknown := [name for name in self.contenders if name not in CONTENDERS]:
            raise cli.unknown("contender", unknown[0], CONTENDERS)
        if wrong := [entry for entry in self.set if "=" not in entry]:
            raise ValueError(f"set: expected NAME=VALUE, got {wrong[0]!r}")


def main(config: Config) -> dict[str, Any]:
    """Start the contenders, measure them, write the JSON and return it."""
    from train.record import write_json

    about = serve_raw.described(config.bundle, config.precision)
    files = pictures(config.images or config.bundle / "samples")
    with contextlib.ExitStack() as stack:
        made, checked = start(config, files, stack)
        rounds = measure(config, made)
    content = {
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in ("bundle", "images", "out")},
        "model": {key: about[key] for key in ("name", "T", "dataset", "checkpoint_sha256")},
        "exit": {key: about["exits"][config.precision][key] for key in ("rule", "threshold")},
        "images": {"number": len(files), "bytes": sum(map(len, files)) / len(files), **checked},
        **circumstances(),
        "rounds": rounds,
    }
    content |= {"rows": rows(rounds), "ratios": ratios(rounds)}
    content["lines"] = [line._asdict() for line in lines(rounds)]
    path = config.out or Path("results") / f"serve_load-{about['name']}-{config.precision}.json"
    write_json(path, content)
    print(f"\n{table(content)}\n\n" + "\n".join(map(str, lines(rounds))) + f"\nwritten: {path}")
    return content


def start(
    config: Config, files: Sequence[bytes], stack: contextlib.ExitStack
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """Start the contenders; how each is measured, and what they answered before anything was timed."""
    client = stack.enter_context(Apart(config.client_cores))
    settings = {
        "TSERVE_PRECISION": config.precision,
        "TSERVE_THREADS": str(config.threads),
        "TSERVE_PROVIDER": config.provider,
    }
    settings |= dict(entry.split("=", 1) for entry in config.set)
    made: dict[str, Measure] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    for name in config.contenders:
        if name.startswith("raw"):
            form = "anytime" if name == "raw_anytime" else "all_steps"
            made[name] = stack.enter_context(raw(config, files, form))
            continue
        if name == "fastapi":
            server = stack.enter_context(alternative(config))
        else:
            more = {} if name == "service_anytime" else {"TSERVE_EXIT_THRESHOLD": "1"}
            server = stack.enter_context(service(config.bundle, settings=settings | more, cores=config.server_cores))
        requests = tuple(map(multipart, files))
        asked = Plan(port=server.port, requests=requests, number=len(files), fields=("label", "steps_used"))
        answers[name] = [sample.answer for sample in client.run(asked).samples]
        made[name] = over_http(server, client, requests)
    return made, agreement(answers)


def agreement(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How the servers answered the images: mean steps, and the share of labels in which each agrees with the first."""
    found: dict[str, Any] = {}
    for name, mine in answers.items():
        if not all(mine):
            raise ValueError(f"{name} has not answered every image with 200: nothing is measured")
        first = next(iter(answers.values()))
        same = sum(a["label"] == b["label"] for a, b in zip(mine, first, strict=True))
        steps = [answer["steps_used"] for answer in mine if answer["steps_used"] is not None]
        found[name] = {"labels_as_first": same / len(mine), "mean_steps": sum(steps) / len(steps) if steps else None}
    return {"answers": found}


def over_http(server: Server, client: Apart, requests: Any) -> Measure:
    """Measure a server."""

    def timed(callers: int, number: int, seconds: float) -> tuple[Report, float]:
        client.run(Plan(port=server.port, requests=requests, callers=callers, number=max(WARM, callers)))
        cpu = server.cpu_s
        report = client.run(Plan(port=server.port, requests=requests, callers=callers, number=number, seconds=seconds))
        return report, server.cpu_s - cpu

    return timed


@contextlib.contextmanager
def raw(config: Config, files: Sequence[bytes], form: str) -> Iterator[Measure]:
    """Measure onnxruntime in a process of its own."""
    context = multiprocessing.get_context("spawn")
    provider = serve_raw.PROVIDERS[config.provider]
    prepared = (config.bundle, config.precision, config.threads, list(files), provider, config.server_cores)
    with ProcessPoolExecutor(1, context, initializer=serve_raw.prepare, initargs=prepared) as pool:

        def timed(callers: int, number: int, seconds: float) -> tuple[Report, float]:
            done = pool.submit(serve_raw.measure, form, callers=callers, number=number, seconds=seconds).result()
            return done, done.cpu_s

        timed(1, WARM, config.seconds)
        yield timed


@contextlib.contextmanager
def alternative(config: Config) -> Iterator[Server]:
    """The FastAPI app under uvicorn, with one worker, as it comes, but without its access log."""
    model = config.bundle / serve_raw.described(config.bundle)["models"][config.precision]["unrolled"]
    environment = os.environ | {"MODEL": str(model.absolute()), "THREADS": str(config.threads)}
    environment["PROVIDER"] = serve_raw.PROVIDERS[config.provider]
    app = ["--app-dir", str(Path(__file__).parent), "serve_fastapi:app"]
    command = [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--no-access-log", "--port"]
    with running(command, environment, cores=config.server_cores, ready="/openapi.json") as server:
        yield server


def measure(config: Config, made: dict[str, Measure]) -> list[dict[str, Any]]:
    """The rounds: by number of callers, by contender, its figures."""
    rounds: list[dict[str, Any]] = []
    names = list(made)
    for number in range(config.rounds):
        rounds.append({str(callers): {} for callers in config.callers})
        turn = number % len(names)
        for callers, name in itertools.product(config.callers, names[turn:] + names[:turn]):
            report, cpu = made[name](callers, config.requests, config.seconds)
            row = summary(report)
            if name.startswith("raw"):
                del row["client_cpu_s_per_request"], row["client_loop"]
            row["cpu_ms"] = 1e3 * cpu / max(row["requests"], 1)
            rounds[-1][str(callers)][name] = row
            told = (
                f"{row['answers_per_s']:8.1f}/s  p50 {row.get('p50_ms', 0):8.2f} ms  p99 {row.get('p99_ms', 0):8.2f} ms"
            )
            print(f"round {number + 1}/{config.rounds}  {callers:3d} callers  {name:16s}{told}", flush=True)
    return rounds


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/serve_load.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
