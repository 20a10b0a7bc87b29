"""`python -m train.sweep [RECIPE] --space KEY=RANGE .. [--trials N]`: search settings of a student with Optuna.

KEY is any key of the configuration, RANGE is low:high (with :log where it spans decades) or a list of values: `--space
method.alpha=0.1:0.9 method.entropy_weight=1e-4:0.2:log method.temperature=2,3,5`. All other flags are those of
train.distill. A trial's value is the accuracy on validation images after the last epoch, so that the test images stay
unseen. Trials are kept in study.db (SQLite): the same command goes on, also with a trial that was broken off.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import cli
from train.config import RECIPES, DistillConfig
from train.errors import Diverged
from train.methods import METHODS
from train.space import Space


if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class SweepConfig(DistillConfig):
    """Search settings of a student."""

    space: tuple[str, ...] = ()
    """What is varied: KEY=low:high, KEY=low:high:log or KEY=a,b,c, one or more."""
    trials: int = 20
    """Trials in all, those of earlier calls and those that diverged included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")


def main(config: SweepConfig) -> dict[str, Any]:
    """Run the trials that are missing; write sweep.json and return its content."""
    import optuna

    from train import parallel, record
    from train.state import differences

    if not config.space:
        raise ValueError("say what is varied, e.g. --space method.alpha=0.1:0.9")
    if config.data.val_fraction == 0:
        raise ValueError("a sweep compares accuracies on validation images: --data.val_fraction must not be 0")
    if parallel.processes() > 1 or config.devices * config.nodes > 1:
        raise ValueError("a sweep runs one process on one device; start several with other --seed and --out")
    base = fixed(config)
    ranges = [Space.parse(text) for text in config.space]
    if twice := [axis.key for i, axis in enumerate(ranges) if axis.key in [other.key for other in ranges[:i]]]:
        raise ValueError(f"space: {twice[0]} is given more than once; give each key one range")
    for axis in ranges:
        for value in axis.ends():
            varied(base, {axis.key: value})  # what a range allows is refused now, not after hours
    out = config.out or Path("runs") / f"sweep-{config.data.name}-{config.net.name}-{config.method.name}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with record.only_writer(out):
        study = optuna.create_study(
            storage=f"sqlite:///{out / 'study.db'}",
            study_name="sweep",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=config.seed),
            load_if_exists=True,
        )
        identity = {"settings": settings(base), "space": sorted(config.space)}
        if differing := differences(study.user_attrs.get("identity", identity), identity):
            raise ValueError(f"{out / 'study.db'} is another sweep's: {'; '.join(differing)}. Give another --out")
        study.set_user_attr("identity", identity)
        take_up(study)
        while (done := len(finished(study)) + len(diverged(study))) < config.trials:
            trial = study.ask()
            chosen = {axis.key: axis.suggest(trial) for axis in ranges}
            trial.set_user_attr("folder", trial.user_attrs.get("folder", f"trial-{trial.number:04d}"))
            parallel.say(f"trial {done + 1}/{config.trials}: {shown(chosen)}")
            try:
                study.tell(trial, run(varied(base, chosen), out / trial.user_attrs["folder"]))
            except Diverged as error:
                parallel.say(f"trial {done + 1}/{config.trials} diverged: {error}")
                trial.set_user_attr("diverged", str(error))
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            record.write_json(out / "sweep.json", report(study, identity))
    return report(study, identity)


def run(config: DistillConfig, folder: Path) -> float:
    """Train one student and give its accuracy on validation images after the last epoch."""
    from train import distill

    distill.main(dataclasses.replace(config, out=folder, resume="auto"))
    history = json.loads((folder / "run.json").read_text())["history"]
    return float(history[-1]["val_accuracy"])


def fixed(config: SweepConfig) -> DistillConfig:
    """The student's settings without the sweep's own."""
    names = {field.name for field in dataclasses.fields(DistillConfig)}
    return DistillConfig(**{name: getattr(config, name) for name in names})


def varied(base: DistillConfig, chosen: dict[str, Any]) -> DistillConfig:
    """`base` with values by dotted key. Raises ValueError for an unknown key or a value that is refused."""
    tables: dict[str, Any] = {}
    for key, value in chosen.items():
        *path, last = key.split(".")
        table = tables
        for name in path:
            table = table.setdefault(name, {})
        table[last] = value
    return cli.overlay(base, tables, variants={"method": METHODS})


def settings(config: DistillConfig) -> dict[str, Any]:
    """What makes two sweeps the same: all settings but where files lie and how a run goes on."""
    left_out = ("out", "resume", "save_steps", "save_minutes", "device")
    return {key: value for key, value in cli.to_dict(config).items() if key not in left_out}


def take_up(study: optuna.Study) -> None:
    """Queue the trials that a killed sweep left running, with their values and folders: their training goes on."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if "diverged" in trial.user_attrs:
            continue  # killed before that was told
        study.enqueue_trial(trial.params, user_attrs={k: v for k, v in trial.user_attrs.items() if k == "folder"})


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have a value, the best first."""
    from optuna.trial import TrialState

    return sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -(trial.value or 0))


def diverged(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials whose training stopped being finite; those that were killed failed, too, and are not among them."""
    return [trial for trial in study.get_trials() if "diverged" in trial.user_attrs]


def report(study: optuna.Study, identity: dict[str, Any]) -> dict[str, Any]:
    """What sweep.json holds: the settings, every finished trial, the best first, and those that diverged."""
    from train.record import git_state, versions

    trials = [
        {"number": t.number, "val_accuracy": t.value, "values": t.params, "folder": t.user_attrs["folder"]}
        for t in finished(study)
    ]
    failed = [
        {"number": t.number, "values": t.params, "folder": t.user_attrs["folder"], "why": t.user_attrs["diverged"]}
        for t in diverged(study)
    ]
    return {**identity, "trials": trials, "diverged": failed, "versions": versions(), "git": git_state()}


def shown(values: dict[str, Any]) -> str:
    """Values as the flags that set them."""
    return " ".join(
        f"--{key} {value:.4g}" if isinstance(value, float) else f"--{key} {value}" for key, value in values.items()
    )


def command(argv: list[str]) -> None:
    """Parse, run, print the best trials."""
    config = cli.parse(
        SweepConfig,
        argv=argv,
        prog="python -m train.sweep",
        description=__doc__ or "",
        recipe_dir=RECIPES,
        variants={"method": METHODS},
    )
    found = main(config)
    if not found["trials"]:
        raise ValueError(f"all {len(found['diverged'])} trials diverged (sweep.json); take another --space and --out")
    if found["diverged"]:
        print(f"\n{len(found['diverged'])} trials diverged: sweep.json says which, and why")
    print(f"\n{len(found['trials'])} trials; accuracy on validation images of the best:")
    for trial in found["trials"][:5]:
        print(f"  {trial['val_accuracy']:.2%}  {shown(trial['values'])}   ({trial['folder']})")
    print("next: train.distill with the flags of the best, with several seeds, for its accuracy on the test split")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
