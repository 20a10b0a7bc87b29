"""`python benchmarks/serve_endurance.py TRIAL [BUNDLE]`: what the service bears. Each trial starts its own server.

overload  many more callers than the queue has places: who is shed, how fast, and how soon all is as before
soak      a steady load for minutes: the workers' memory
swap      the bundle is replaced again and again under load, and by broken ones
kill      kill -9 of the worker: how soon the service answers again
term      SIGTERM under load: nothing that was accepted is lost
hostile   thousands of malformed requests: what they are answered, and what they leave behind

Each writes a JSON file and prints its lines; the exit status is 1 if one of them does not hold.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import serve_hostile
import serve_raw
import serve_swap
import serve_trials
from hostile_case import Target
from serve_client import Plan, run
from serve_figures import Line, at_least, at_most, circumstances
from serve_hostile import Outcome
from serve_process import Setup
from serve_requests import Request, multipart, pictures

from train import cli


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every trial has."""

    bundle: Annotated[Path, Positional] = Path("runs/latest/bundle")
    """The bundle that is served."""
    images: Path | None = None
    """Folder of image files, sent in turn; default: the bundle's samples."""
    precision: Literal["fp32", "fp16", "int8"] = "int8"
    """Which of the bundle's models."""
    server_cores: tuple[int, ...] = ()
    """Cores of the server; default: all."""
    client_cores: tuple[int, ...] = ()
    """Cores of the load generator; default: all."""
    set: tuple[str, ...] = ()
    """More settings of the service, as TSERVE_RUNNERS=2."""
    seed: int = 0
    """Of what is left to chance."""
    out: Path | None = None
    """The JSON file; default: results/serve_endurance-TRIAL-MODEL.json."""

    def __post_init__(self) -> None:
        if wrong := [entry for entry in self.set if "=" not in entry]:
            raise ValueError(f"set: expected NAME=VALUE, got {wrong[0]!r}")
        for name in ("callers", "queue", "seconds", "minutes", "times", "cases", "at_once", "rest_s"):
            if getattr(self, name, 1) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Overload(Trial):
    """Many more callers than the queue has places."""

    callers: int = 256
    queue: int = 32
    """Images that may wait (TSERVE_QUEUE)."""
    seconds: float = 10.0
    """How long."""
    on_busy: Literal["go_on", "retry_after", "back_off"] = "retry_after"
    """What who is shed does: asks again at once, after Retry-After, or after 0.1 s."""


@dataclass(frozen=True, kw_only=True)
class Soak(Trial):
    """A steady load for a long time."""

    callers: int = 8
    minutes: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Swap(Trial):
    """Bundles replaced under load."""

    callers: int = 4
    times: int = 200


@dataclass(frozen=True, kw_only=True)
class Kill(Trial):
    """kill -9 of the worker."""

    times: int = 5


@dataclass(frozen=True, kw_only=True)
class Term(Trial):
    """SIGTERM under load."""

    callers: int = 32
    times: int = 5


@dataclass(frozen=True, kw_only=True)
class Hostile(Trial):
    """Malformed requests."""

    cases: int = 3000
    at_once: int = 8
    """Connections at a time."""
    stall_s: float = 3.0
    """The server's body time-out (TSERVE_TIMEOUT)."""
    rest_s: float = 10.0
    """Before memory is looked at again."""


COMMANDS: Any = (
    Annotated[Overload, tyro.conf.subcommand("overload")]
    | Annotated[Soak, tyro.conf.subcommand("soak")]
    | Annotated[Swap, tyro.conf.subcommand("swap")]
    | Annotated[Kill, tyro.conf.subcommand("kill")]
    | Annotated[Term, tyro.conf.subcommand("term")]
    | Annotated[Hostile, tyro.conf.subcommand("hostile")]
)
TRIALS = {"overload": Overload, "soak": Soak, "swap": Swap, "kill": Kill, "term": Term, "hostile": Hostile}


def main(config: Trial) -> int:
    """Carry a trial out, write its JSON and print its lines; 0 if all hold, else 1."""
    from train.record import write_json

    about = serve_raw.described(config.bundle, config.precision)
    (trial,) = (name for name, kind in TRIALS.items() if type(config) is kind)
    circumstance = circumstances()
    found, lines = carry_out(config, pictures(config.images or config.bundle / "samples"))
    content = {
        "trial": trial,
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in ("bundle", "images", "out")},
        "model": {key: about[key] for key in ("name", "T", "dataset", "checkpoint_sha256")},
        **circumstance,
        "lines": [line._asdict() for line in lines],
        "found": found,
    }
    path = config.out or Path("results") / f"serve_endurance-{trial}-{about['name']}.json"
    write_json(path, content)
    print("\n".join(map(str, lines)) + f"\nwritten: {path}")
    return 0 if all(line.holds for line in lines) else 1


def carry_out(config: Trial, files: Sequence[bytes]) -> serve_trials.Found:
    """The trial that the config asks for."""
    settings = {"TSERVE_PRECISION": config.precision, "TSERVE_PROVIDER": "cpu"}
    settings |= dict(entry.split("=", 1) for entry in config.set)
    setup = Setup(
        bundle=config.bundle, settings=settings, server_cores=config.server_cores, client_cores=config.client_cores
    )
    requests = tuple(map(multipart, files))
    match config:
        case Overload(callers=callers, queue=queue, seconds=seconds, on_busy=on_busy):
            return serve_trials.overload(
                setup, requests, callers=callers, queue=queue, seconds=seconds, on_busy=on_busy
            )
        case Soak(callers=callers, minutes=minutes):
            return serve_trials.soak(setup, requests, callers=callers, minutes=minutes)
        case Swap(callers=callers, times=times, seed=seed):
            with tempfile.TemporaryDirectory() as folder:
                return serve_swap.swap(
                    setup, files, requests, folder=Path(folder), times=times, callers=callers, seed=seed
                )
        case Kill(times=times, seed=seed):
            return serve_trials.kill(setup, requests, times=times, seed=seed)
        case Term(callers=callers, times=times, seed=seed):
            return serve_trials.term(setup, requests, callers=callers, times=times, seed=seed)
        case Hostile():
            return hostile(setup, files[0], requests, config)
    raise TypeError(f"no trial {type(config).__name__}")


def hostile(setup: Setup, image: bytes, requests: tuple[Request, ...], config: Hostile) -> serve_trials.Found:
    """Send the malformed requests; the server's memory and process before and after."""
    about = serve_raw.described(setup.bundle)["input"]
    shape = (about["channels"], about["height"], about["width"])
    several = serve_hostile.cases(config.cases, config.seed, Target(image=image, shape=shape, stall_s=config.stall_s))
    with setup.service({"TSERVE_TIMEOUT": str(config.stall_s)}) as server:
        good = Plan(port=server.port, requests=requests, callers=8, number=500)
        run(good)
        time.sleep(2)
        workers, before = server.workers, server.rss
        began = time.monotonic()
        outcomes = serve_hostile.attack(server.port, several, at_once=config.at_once)
        took = time.monotonic() - began
        peak = server.rss
        time.sleep(config.rest_s)
        after = server.rss
        alive = server.process.poll() is None and server.workers == workers
        answered = [sample.status for sample in run(good).samples]
    wrong = [outcome for outcome in outcomes if outcome.problem]
    found = {
        "seconds": took,
        "statuses": by_kind(outcomes),
        "problems": [{"kind": o.case.kind, "about": o.case.about, "problem": o.problem} for o in wrong[:200]],
        "rss_before": before,
        "rss_at_end": peak,
        "rss_after": after,
    }
    return found, [
        at_least("malformed requests", len(outcomes), config.cases),
        at_most("answers 5xx but 503", sum(o.status >= 500 and o.status != 503 for o in outcomes), 0),
        at_most("answers that are not as they must be", len(wrong), 0),
        Line("the same workers live", len(workers), alive),
        at_most("good requests afterwards that were not answered 200", sum(s != 200 for s in answered), 0),
        at_most("memory afterwards over that before, less 1, at most 0.1", after / before - 1, 0.1),
    ]


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Statuses by kind of case; "none" for no answer."""
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.case.kind, Counter())[str(outcome.status or "none")] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.items())}


def command(argv: list[str]) -> int:
    """Parse and run."""
    config: Trial = cli.parse(
        COMMANDS, argv=argv, prog="python benchmarks/serve_endurance.py", description=__doc__ or ""
    )
    return main(config)


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
