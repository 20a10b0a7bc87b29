"""What benchmarks/serve_load.py makes of its rounds: figures, ratios within a round, lines that hold or not, tables."""

from collections.abc import Sequence
from typing import Any

from serve_figures import Line, at_least, at_most, over_rounds, spread


CONTENDERS = {
    "raw": "onnxruntime, T steps",
    "service": "service, T steps",
    "fastapi": "FastAPI, T steps",
    "raw_anytime": "onnxruntime, any-time",
    "service_anytime": "service, any-time",
}
FIGURES = ("answers_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms")
RATIOS = (
    ("service", "raw"),
    ("service", "fastapi"),
    ("service_anytime", "raw_anytime"),
    ("service_anytime", "fastapi"),
)


def rows(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By callers, by contender: figures over the rounds, and requests and failures of all of them."""
    found: dict[str, Any] = {}
    for callers, names in rounds[0].items():
        found[callers] = {}
        for name in names:
            mine = [r[callers][name] for r in rounds]
            figures = {figure: over_rounds([row.get(figure) for row in mine]) for figure in FIGURES}
            found[callers][name] = figures | {key: sum(row[key] for row in mine) for key in ("requests", "failed")}
    return found


def ratios(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By callers, for each pair of contenders: answers/s of one over the other's, and p50 of one less the other's.

    `of_best` divides by the other's best number of callers in that round.
    """
    found: dict[str, Any] = {}
    for callers, names in rounds[0].items():
        found[callers] = {}
        for one, other in RATIOS:
            if one not in names or other not in names:
                continue
            pairs = [(r[callers][one], r[callers][other]) for r in rounds]
            best = [max(row[other]["answers_per_s"] for row in r.values()) for r in rounds]
            found[callers][f"{one}/{other}"] = {
                "answers": over_rounds([a["answers_per_s"] / b["answers_per_s"] for a, b in pairs]),
                "answers_of_best": over_rounds([a["answers_per_s"] / b for (a, _), b in zip(pairs, best, strict=True)]),
                "p50_added_ms": over_rounds(
                    [a["p50_ms"] - b["p50_ms"] if "p50_ms" in a and "p50_ms" in b else None for a, b in pairs]
                ),
                "cpu_added_ms": over_rounds([a["cpu_ms"] - b["cpu_ms"] for a, b in pairs]),
            }
    return found


def lines(rounds: Sequence[dict[str, Any]]) -> list[Line]:
    """What is claimed of the service, on the medians over the rounds."""
    found: list[Line] = []
    compared = ratios(rounds)
    services = ("service", "service_anytime")
    failed = sum(row["failed"] for r in rounds for cell in r.values() for name, row in cell.items() if name in services)
    found.append(at_most("requests to the service that were not answered 200", failed, 0))
    for pair in ("service/raw", "service_anytime/raw_anytime"):
        if ratio := compared.get("32", {}).get(pair):
            found.append(at_least(f"{pair}, 32 callers: answers/s, at least 0.9", ratio["answers"]["median"], 0.9))
        if (ratio := compared.get("1", {}).get(pair)) and ratio["p50_added_ms"]:
            found.append(at_most(f"{pair}, 1 caller: ms added to p50, at most 5", ratio["p50_added_ms"]["median"], 5))
    for callers, cell in compared.items():
        if ratio := cell.get("service/fastapi"):
            claim = f"service/fastapi, {callers} callers: answers/s, at least 1"
            found.append(at_least(claim, ratio["answers"]["median"], 1))
    return found


def table(content: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    settings, model, ways = content["settings"], content["model"], content["images"]["answers"]
    steps = ", ".join(f"{name}: {way['mean_steps']:.2f}" for name, way in ways.items() if way["mean_steps"])
    head = ["callers", "", "answers/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms a request", "failed of"]
    out = [
        f"{model['name']}, {settings['precision']}, T={model['T']}, {settings['provider']}, "
        f"{content['machine']['cpu']}, server cores {settings['server_cores'] or 'all'}, "
        f"threads {settings['threads']}, rounds {settings['rounds']}; "
        f"{content['images']['number']} images; mean steps: {steps or 'T'}",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for callers, cell in content["rows"].items():
        for name, row in cell.items():
            figures = [spread(row[figure], 1 if figure == "answers_per_s" else 2) for figure in FIGURES]
            out.append(
                f"| {callers} | {CONTENDERS[name]} | {' | '.join(figures)} | {row['failed']} of {row['requests']} |"
            )
    head = ["callers", "", "answers/s", "of its best", "ms added to p50", "CPU ms added"]
    out += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for callers, cell in content["ratios"].items():
        for pair, ratio in cell.items():
            figures = [spread(ratio[key]) for key in ("answers", "answers_of_best", "p50_added_ms", "cpu_added_ms")]
            out.append(f"| {callers} | {pair} | {' | '.join(figures)} |")
    return "\n".join(out)
