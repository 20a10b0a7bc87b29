"""The student beside what a user would run instead: its own ANN and its teacher, precision by precision.

All of it follows from the accounts of energy.json: operations of each convention at the prices of a precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.conventions import CONVENTIONS
from export.energy_account import price_of
from export.energy_beside import Beside, Teacher
from hardware.chip import Chip


PRECISIONS = {"fp32": "fp32", "int8": "int8", "int32": "32-bit integers, memory accesses included"}
"""By name, in words; fp32 and int8 are of conventions without memory, int32 is of the one with it."""
ALTERNATIVES = {"ann": "its own ANN", "teacher": "the teacher"}
STUDENTS = {"snn": "the SNN", "early": "stopped early, it"}
EXIT_OF = {"fp32": "fp32", "int8": "int8", "int32": "fp32"}
"""Whose mean steps are taken: events are counted of the float student."""
RULES = (
    "The operations of each convention at the prices of a precision: AC and MAC of fp32, or of 8-bit integers, whose"
    " published prices are of 8-bit sums (wider sums, which both networks need, cost more). The int8 SNN is charged the"
    " events of the float student, of which rounding changes few, and is held against no network in fp32. The"
    " convention with memory is in 32-bit integers and in no other precision: its published accesses are of 32-bit"
    " words. The ANN and the teacher multiply every layer densely, once. A student that stops early is charged its"
    " first steps, and a share of the next one for the fraction of its mean steps, each at the mean of all images."
)


def compare(accounts: Sequence[Mapping[str, Any]], beside: Beside, chip: Chip, *, T: int) -> dict[str, Any]:
    """What energy.json holds under `comparison`: rows of joules an image, ratios, and sentences that follow from them.

    accounts: the conventions' entries (energy_account.account). A row is one network in one precision, with joules by
    convention; a ratio below 1 favours the SNN. `left_out` names what is missing, and why.
    """
    rows = [row for precision in PRECISIONS for row in _rows(accounts, beside, chip, precision)]
    ratios = list(_ratios(rows))
    return {
        "rules": RULES,
        "prices": {
            precision: {kind: price_of(chip[f"energy.{kind}_{precision}"]) for kind in ("ac", "mac")}
            for precision in PRECISIONS
        },
        "teacher": _about(beside.teacher) if isinstance(beside.teacher, Teacher) else None,
        "rows": rows,
        "left_out": left_out(accounts, beside),
        "ratios": ratios,
        "verdict": verdict(ratios),
        "verdicts": verdicts(rows, ratios, T=T),
    }


def precisions(convention: str) -> tuple[str, ...]:
    """In which precisions a convention can be priced."""
    return ("int32",) if CONVENTIONS[convention].memory else ("fp32", "int8")


def _rows(
    accounts: Sequence[Mapping[str, Any]], beside: Beside, chip: Chip, precision: str
) -> Iterator[dict[str, Any]]:
    """The networks in one precision."""
    ac, mac = (chip[f"energy.{kind}_{precision}"].value for kind in ("ac", "mac"))
    counted = [entry for entry in accounts if "per_image" in entry and precision in precisions(entry["name"])]
    early = None if isinstance(beside.early, str) else beside.early.get(EXIT_OF[precision])
    teacher = beside.teacher if isinstance(beside.teacher, Teacher) else None
    spent: dict[str, dict[str, Mapping[str, float]]] = {
        "ann": {entry["name"]: entry["per_image"]["ann"] for entry in counted},
        "teacher": {},
        "snn": {entry["name"]: entry["per_image"] for entry in counted},
        "early": {},
    }
    for entry in counted:
        if early is not None:
            spent["early"][entry["name"]] = first_steps(entry["per_step"], early.mean_steps)
        if teacher is not None and not isinstance(of_it := teacher.conventions[entry["name"]], str):
            spent["teacher"][entry["name"]] = of_it
    rounded = early.accuracy_of_all if early is not None and precision == "int8" else None
    accuracy = {
        "teacher": teacher.accuracy if teacher is not None and precision == "fp32" else None,
        "snn": beside.accuracy if precision == "fp32" else rounded,
        "early": early.accuracy if early is not None and precision != "int32" else None,
    }
    for what, by_convention in spent.items():
        if by_convention:
            yield {
                "what": what,
                "precision": precision,
                "mean_steps": early.mean_steps if what == "early" and early is not None else None,
                "accuracy": accuracy.get(what),
                "energy_J": {
                    name: done["acs"] * ac + done["macs"] * mac + done["access_J"]
                    for name, done in by_convention.items()
                },
            }


def first_steps(per_step: Sequence[Mapping[str, float]], steps: float) -> dict[str, float]:
    """What the first `steps` steps did, which need not be a whole number."""
    shares = [min(1.0, max(0.0, steps - t)) for t in range(len(per_step))]
    return {
        key: sum(share * step[key] for share, step in zip(shares, per_step, strict=True))
        for key in ("acs", "macs", "access_J")
    }


def left_out(accounts: Sequence[Mapping[str, Any]], beside: Beside) -> list[dict[str, str]]:
    """What the rows do not have, with the reason."""
    found = [{"what": entry["name"], "reason": entry["unavailable"]} for entry in accounts if "unavailable" in entry]
    words = "its published prices of memory are of 32-bit words, so it is in 32-bit integers and in no other precision"
    found += [
        {"what": f"{name} in {precision}", "reason": words}
        for name, convention in CONVENTIONS.items()
        for precision in ("fp32", "int8")
        if convention.memory
    ]
    if isinstance(beside.teacher, str):
        found.append({"what": "the teacher", "reason": beside.teacher})
    else:
        found += [
            {"what": f"the teacher by {name}", "reason": of_it}
            for name, of_it in beside.teacher.conventions.items()
            if isinstance(of_it, str)
        ]
    if isinstance(beside.early, str):
        found.append({"what": "stopping early", "reason": beside.early})
    elif missing := [precision for precision in ("fp32", "int8") if precision not in beside.early]:
        words = "the bundle has no model of this precision"
        found += [{"what": f"stopping early in {precision}", "reason": words} for precision in missing]
    return found


def _ratios(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joules of the student over those of an alternative, wherever a convention prices both.

    A student in int8 is held against no network in fp32: what rounding saves is not what spikes save.
    """
    for other in rows:
        for row in rows:
            flattering = (row["precision"], other["precision"]) == ("int8", "fp32")
            if other["what"] in ALTERNATIVES and row["what"] in STUDENTS and not flattering:
                for name, energy in row["energy_J"].items():
                    if name in other["energy_J"]:
                        yield {
                            "what": row["what"],
                            "precision": row["precision"],
                            "against": other["what"],
                            "against_precision": other["precision"],
                            "convention": name,
                            "ratio": energy / other["energy_J"][name],
                        }


def verdict(ratios: Sequence[Mapping[str, Any]]) -> str:
    """One sentence over all conventions and alternatives; of the student that takes all its steps."""
    of_all = sorted((entry for entry in ratios if entry["what"] == "snn"), key=lambda entry: float(entry["ratio"]))
    if not of_all:
        return "No verdict: no convention can count this network."
    fewer = sum(entry["ratio"] < 1 for entry in of_all)
    word = "Favourable" if fewer == len(of_all) else "Mixed" if fewer else "Not favourable"
    best, worst = (
        f"{entry['ratio']:.3g} times what {ALTERNATIVES[entry['against']]} costs in {entry['against_precision']}"
        f" ({entry['convention']}, SNN in {entry['precision']})"
        for entry in (of_all[0], of_all[-1])
    )
    return (
        f"{word}: the SNN with all its steps costs less in {fewer} of {len(of_all)} comparisons;"
        f" at best {best}, at worst {worst}."
    )


def verdicts(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]], *, T: int) -> list[str]:
    """A sentence for each alternative in each precision, favourable or not."""
    steps = {row["precision"]: row["mean_steps"] for row in rows if row["what"] == "early"}
    found = []
    for other in rows:
        if other["what"] not in ALTERNATIVES:
            continue
        here = [r for r in ratios if (r["against"], r["against_precision"]) == (other["what"], other["precision"])]
        parts = []
        for what, words in STUDENTS.items():
            cells = []
            for precision in PRECISIONS:
                values = [r["ratio"] for r in here if (r["what"], r["precision"]) == (what, precision)]
                if values:
                    after = f" after {steps[precision]:.2f} of {T} steps" if what == "early" else ""
                    inside = "" if precision == "int32" else f" in {precision}"
                    cells.append(f"{times(values)}{inside}{after}")
            if cells:
                parts.append(f"{words} costs {' and '.join(cells)}")
        names = ", ".join(dict.fromkeys(r["convention"] for r in here))
        end = f" ({names})." if names else ""
        against = f"{ALTERNATIVES[other['what']]} in {PRECISIONS[other['precision']]}"
        if parts:
            found.append(f"Against {against}, {'; '.join(parts)}{end}")
    return found


def times(values: Sequence[float]) -> str:
    """Ratios as a range: '0.15 to 0.25 times as much'."""
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return f"{least if least == most else f'{least} to {most}'} times as much"


def _about(teacher: Teacher) -> dict[str, Any]:
    """Which teacher it is."""
    return {key: getattr(teacher, key) for key in ("net", "sha256", "taught", "accuracy")}
