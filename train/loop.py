"""The training loop, flat: what happens in a run, in the order in which it happens."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import engine, interrupt, optimizer, parallel
from train.average import Average, estimated
from train.checkpoint import Preprocess
from train.config import RunConfig
from train.data import Dataset, Shuffled, Targets
from train.errors import Diverged, Stopped
from train.memory import spikes_as_bytes
from train.metrics import run_split, summary
from train.networks import Network
from train.record import write_jsonl
from train.state import Progress, State


# Losses stay on the device for so many steps; then they are looked at, and processes agree on saving and stopping.
LOOK_EVERY = 20
SAY_EVERY = 60.0
"""Seconds between two lines on an epoch's progress, where there is no terminal for a bar."""

# One step's named loss terms and "total", from the (wrapped) model, augmented uint8 images [B, C, H, W] and targets.
Step = Callable[[nn.Module, Tensor, Targets], dict[str, Tensor]]


def fit(
    network: Network,
    step: Step,
    *,
    model: nn.Module,
    dataset: Dataset,
    preprocess: Preprocess,
    config: RunConfig,
    identity: dict[str, Any],
    out: Path,
    title: str,
    before_step: Callable[[float], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Train `network` in place and return one record an epoch; also written to out/metrics.jsonl.

    model: the network, or a module around it that is called and trained in its place.
    before_step: called before each step with the part of all steps that is done, and with 1 before the network is
    measured.
    out/state.pt holds all that is needed to go on; with config.resume == "auto" training does so, bit for bit, if
    `identity` (the settings that shape the result) is the one the state was made with.
    Raises ValueError for a state of another run and for what `engine.start` refuses; Diverged when a loss, a weight or
    an answer on validation images stops being finite (the last good state is kept); OSError when a state cannot be
    written; Stopped after a SIGTERM or Ctrl-C.
    """
    fabric = engine.start(config)
    optim = config.optim
    updates = optimizer.build(model, optim)
    wrapped, updates = fabric.setup(engine.prepare(network, config, device=fabric.device.type, model=model), updates)
    average = Average(network, optim.ema) if optim.ema else None
    parts = {"model": model, "optimizer": updates, "precision": fabric.strategy.precision, "average": average}
    state = State(path=out / "state.pt", identity=identity, parts={k: v for k, v in parts.items() if v is not None})
    progress = Progress()
    if config.resume == "auto" and state.path.exists():
        progress = state.load()
        parallel.say(
            f"{title}: resumed after step {progress.step} (epochs done: {len(progress.history)}) from {state.path}"
        )

    newest, oldest = parallel.largest(progress.step, -progress.step)
    if newest != -oldest:
        raise ValueError(
            f"{title}: one process starts from step {newest} and another from step {-oldest}; "
            f"all nodes need the same folder {out}, on a disk that they share"
        )
    split = dataset.train.to(fabric.device)
    stream = Shuffled(
        split, optim.batch_size, config=config.data, seed=config.seed, mirror=dataset.mirror, mean=dataset.mean
    )
    part = parallel.own_part(stream.batch_size)
    steps, total = stream.steps, stream.steps * optim.epochs
    saves = Saves(state, config, progress)
    log = Log(out, total=total, title=title, resumed=progress)
    with interrupt.caught() as signals:
        for epoch in range(progress.step // steps, optim.epochs):
            began = time.perf_counter()
            wrapped.train()
            waiting: list[dict[str, Tensor]] = []
            for _ in log.bar(range(progress.step % steps, steps), epoch):
                before_step(progress.step / total)
                optimizer.set_learning_rate(updates, optim, progress.step, total)
                # Autocast is for the teacher, which Fabric does not know.
                with fabric.autocast(), spikes_as_bytes(network, config.compress_spikes):
                    terms = step(wrapped, *stream(progress.step, part))
                updates.zero_grad(set_to_none=True)
                fabric.backward(terms["total"])
                updates.step()
                if average:
                    average.update(network)
                progress.step += 1
                waiting.append({name: value.detach() for name, value in terms.items()})

                # A pause is decided together: by one process after any step, by several when they look at the losses.
                together = len(waiting) == LOOK_EVERY or progress.step % steps == 0
                signal, due = 0, 0
                if together or parallel.processes() == 1:
                    signal, due = parallel.largest(signals[0] if signals else 0, int(saves.due(progress)))
                if together or signal or due:
                    look(waiting, progress, log=log, state=state, lr=optim.lr)
                if (signal or due) and progress.step % steps:
                    progress.seconds += time.perf_counter() - began
                    saves.save(progress)
                    began = time.perf_counter()
                    stop(signal, log, progress, state)

            parallel.share_buffers(network)
            saves.check(progress)  # the last step's losses were finite, what it made of the weights need not be
            progress.seconds += time.perf_counter() - began
            losses = {name: value / steps for name, value in progress.losses.items()}
            record: dict[str, Any] = {"epoch": epoch + 1, "loss": losses, "seconds": progress.seconds}
            before_step(1.0)
            if len(dataset.val):
                kept = estimated(average, split, preprocess) if average else network
                measured = summary(run_split(kept, dataset.val, preprocess, device=fabric.device))
                record |= {"val_accuracy": measured["accuracy"], "val_firing_rate": measured["firing_rate"]}
            progress.history.append(record)
            progress.losses, progress.seconds = {}, 0.0
            saves.save(progress)
            log.epoch(progress.history, epochs=optim.epochs)
            stop(parallel.largest(signals[0] if signals else 0)[0], log, progress, state)
    log.close()
    before_step(1.0)  # a run that was resumed at its end has taken no step
    if average:
        network.load_state_dict(estimated(average, split, preprocess).state_dict())
    return progress.history


def weighted(targets: Targets, loss: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The terms of a loss under every target, by weight: a mixed image has two labels (Zhang et al. 2018)."""
    (weight, target), *others = targets
    terms = loss(target)
    if not others:
        return terms
    terms = {name: weight * value for name, value in terms.items()}
    for weight, target in others:
        terms = {name: terms[name] + weight * value for name, value in loss(target).items()}
    return terms


def look(waiting: list[dict[str, Tensor]], progress: Progress, *, log: "Log", state: State, lr: float) -> None:
    """Add the losses of the last steps to the epoch's and empty the list; the only place where a step is waited for.

    Raises Diverged for a loss that is not finite, with the first such step and term.
    """
    names = list(waiting[0])
    rows = torch.stack([torch.stack([terms[name].double() for name in names]) for terms in waiting])
    rows = parallel.mean(rows).cpu()
    for n, row in enumerate(rows.tolist()):
        for name, value in zip(names, row, strict=True):
            number = progress.step - len(waiting) + n + 1
            if not math.isfinite(value):
                raise Diverged(
                    f"{log.title}: the loss stopped being finite at step {number}, term {name} is {value}; "
                    f"start anew with a smaller --optim.lr (now {lr}) and another --out. {state.kept()}, with that rate"
                )
            if name == "total" and value < 0:
                log.negative(number, value)
            progress.losses[name] = progress.losses.get(name, 0.0) + value
    waiting.clear()


class Saves:
    """When the state is saved within an epoch, and saving it."""

    def __init__(self, state: State, config: RunConfig, progress: Progress) -> None:
        self.state, self.steps, self.seconds = state, config.save_steps, 60 * config.save_minutes
        self.at_step, self.at_time = progress.step, time.monotonic()

    def due(self, progress: Progress) -> bool:
        """Whether enough steps or minutes have passed since the last time."""
        late = bool(self.seconds) and time.monotonic() - self.at_time >= self.seconds
        return late or bool(self.steps and progress.step // self.steps > self.at_step // self.steps)

    def save(self, progress: Progress) -> None:
        """Save the state in the main process; return when it is on disk. An error there ends all processes."""
        self.in_main(self.state.save, progress, otherwise="could not save the state")
        self.at_step, self.at_time = progress.step, time.monotonic()

    def check(self, progress: Progress) -> None:
        """Raise Diverged, in all processes, for a network that is not finite in the main one."""
        self.in_main(self.state.check, progress, otherwise="has a network that is not finite")

    def in_main(self, work: Callable[[Progress], None], progress: Progress, *, otherwise: str) -> None:
        """Do it in the main process. An error there ends all; `otherwise` is what the others say of it."""
        error: Exception | None = None
        if parallel.is_main():
            try:
                work(progress)
            except (OSError, ValueError) as caught:
                error = caught
        if any(parallel.largest(int(error is not None))):
            raise error or OSError(f"{self.state.path}: the main process {otherwise}")


def stop(signal: int, log: "Log", progress: Progress, state: State) -> None:
    """Raise Stopped if there was a signal; the state is saved."""
    if signal:
        raise Stopped(
            signal,
            f"{log.title}: stopped after step {progress.step} of {log.total}; saved in {state.path}. "
            "Go on with the same command and --resume",
        )


class Log:
    """What a person and TensorBoard see of a run; silent in all processes but the main one."""

    def __init__(self, out: Path, *, total: int, title: str, resumed: Progress) -> None:
        self.out, self.total, self.title = out, total, title
        self.warned = False
        self.writer = None
        if parallel.is_main():
            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=len(resumed.history))

    def negative(self, step: int, loss: float) -> None:
        """Say once that the loss is negative: a regulariser outweighs what the student should learn."""
        if not self.warned:
            parallel.say(
                f"{self.title}: warning: the loss is negative from step {step} on ({loss:.3f}): being undecided pays "
                "more than being right. Try a smaller weight of the entropy (--method.entropy_weight)"
            )
        self.warned = True

    def close(self) -> None:
        """Let TensorBoard's file go."""
        if self.writer:
            self.writer.close()

    def bar(self, steps: range, epoch: int) -> Iterable[int]:
        """An epoch's steps, with a progress bar on a terminal; elsewhere, as in a batch job's log, with lines."""
        name = f"{self.title} epoch {epoch + 1}"
        if not self.writer:
            return steps
        if sys.stderr.isatty():
            return tqdm(steps, initial=steps.start, total=steps.stop, desc=name, leave=False)
        return told(steps, name)

    def epoch(self, history: list[dict[str, Any]], *, epochs: int) -> None:
        """Write metrics.jsonl, the last record to TensorBoard, and a line."""
        if not self.writer:
            return
        write_jsonl(self.out / "metrics.jsonl", history)
        record = history[-1]
        for name, value in record["loss"].items():
            self.writer.add_scalar(f"loss/{name}", value, record["epoch"])
        for name in ("val_accuracy", "val_firing_rate"):
            if record.get(name) is not None:
                self.writer.add_scalar(name, record[name], record["epoch"])
        self.writer.flush()
        parallel.say(line(record, epochs, self.title))


def told(steps: range, name: str) -> Iterator[int]:
    """The steps; every SAY_EVERY seconds a line says how far they are. No GPU is waited for: the times are those at
    which its work was ordered, which is never far ahead of it for so long."""
    began = said = time.monotonic()
    for step in steps:
        yield step
        now, done = time.monotonic(), step + 1
        if now - said >= SAY_EVERY and done < steps.stop:
            each, said = (now - began) / (done - steps.start), now
            left = each * (steps.stop - done) / 60
            parallel.say(f"{name}: step {done} of {steps.stop}, {each:.3g} s a step, {left:.1f} minutes left of it")


def line(record: dict[str, Any], epochs: int, title: str) -> str:
    """One epoch on one line."""
    terms = " ".join(f"{name} {value:.3f}" for name, value in record["loss"].items() if name != "total")
    parts = [f"{title} epoch {record['epoch']}/{epochs}", f"loss {record['loss']['total']:.3f} ({terms})"]
    if "val_accuracy" in record:
        parts.append(f"val {record['val_accuracy']:.2%}")
    if record.get("val_firing_rate") is not None:
        parts.append(f"rate {record['val_firing_rate']:.3f}")
    return "  ".join([*parts, f"{record['seconds']:.1f} s"])
