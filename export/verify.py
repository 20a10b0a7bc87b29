"""`python -m export.verify CKPT FILE`: hold an exported .onnx, .net or .nir against its checkpoint on real images.

Spikes are steps, so rounding flips some of them and `allclose` proves nothing. One flipped spike changes what every
later neuron sees, so in a deep network two correct runs soon differ everywhere. What is judged instead: how often a
neuron whose whole past is equal flips, whether the answers agree, and where the first difference is. A .net and an int8
.onnx must be equal to the last bit to the integer twin that the checkpoint gives under the scales written in the file.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional

from train import cli


@dataclass(frozen=True, kw_only=True)
class LayerVerdict:
    """One LIF layer: how many of its `spikes` (in the reference) came out otherwise, over all steps and images."""

    name: str
    flips: int
    spikes: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison found. `first_difference`: the first layer in network order and its first step, from 1."""

    file: str
    reference: str
    engine: str
    images: int
    flips: int
    first_flips: int
    """Flips of neurons before which nothing had flipped: in no earlier layer, and in no earlier step of their own."""
    unchanged: int
    """Neurons times steps before which nothing had flipped."""
    spikes: int
    layers: tuple[LayerVerdict, ...]
    max_logit_difference: float
    argmax_agreement: float
    first_difference: dict[str, Any] | None
    rule: str
    ok: bool
    accuracy: dict[str, float] | None = None
    """Of the `reference` and of the `file` on these images, where their labels were given."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        """One sentence for a person."""
        where = ""
        if self.first_difference:
            where = f"; first difference: layer {self.first_difference['layer']}, step {self.first_difference['step']}"
        right = ""
        if self.accuracy:
            right = f"; right are {self.accuracy['file']:.2%} (of the reference {self.accuracy['reference']:.2%})"
        origin = f", {self.first_flips:,} of them first ones" if self.flips else ""
        return (
            f"{'ok' if self.ok else 'FAILED'}: {self.file} in {self.engine} against {self.reference}, "
            f"{self.images} images: {self.flips:,} of {self.spikes:,} spikes differ{origin}, "
            f"largest logit difference {self.max_logit_difference:.3g}, "
            f"answers agree on {self.argmax_agreement:.2%}{where}{right} (rule: {self.rule})"
        )


def named(out: Path | None, suffix: str) -> None:
    """ValueError for a file to write that is not called by its kind: it would take the place of what is read."""
    if out is not None and out.suffix != suffix:
        raise ValueError(f"--out {out}: the file that is written must end in {suffix}")


class NotVerified(Exception):
    """An export that does not do what its checkpoint does (its message is the Verdict), or that could not be run."""


def judged(command: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A command that, where it raises NotVerified, says why on stderr and returns status 1."""

    @wraps(command)
    def run(argv: list[str]) -> int:
        try:
            return command(argv)
        except NotVerified as failure:
            print(f"{failure}\nnothing was written", file=sys.stderr)
            return 1

    return run


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a network did: spikes of every LIF layer by name [T, B, ...] (0 or 1) and logits [T, B, K]."""

    spikes: dict[str, np.ndarray]
    logits: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a comparison must show: at most these shares of first flips, of other answers, and of error in logits.

    First flips are counted among the neurons times steps before which nothing had flipped (Verdict). A step's logits
    are judged where the last LIF layer, all that they depend on, gave the same spikes: what differs there is rounding,
    and may not exceed `logit_error` times the largest logit.
    """

    text: str
    first_flips: float
    disagreements: float
    logit_error: float


EXACT = Rule(text="bit-exact: no spike and no logit differs", first_flips=0.0, disagreements=0.0, logit_error=0.0)
FLOAT32 = Rule(
    text="float32: of neurons with an equal past at most 1 in 1,000,000 flips at a step, at most 1 answer in 1,000 "
    "(both rounded up) differs, and from equal spikes come logits that differ by at most 1/10,000 of the largest",
    first_flips=1e-6,
    disagreements=1e-3,
    logit_error=1e-4,
)
FLOAT16 = Rule(
    text="float16: of neurons with an equal past at most 1 in 5,000 flips at a step, at most 1 answer in 10 (both "
    "rounded up) differs, and from equal spikes come logits that differ by at most 1/100 of the largest",
    first_flips=2e-4,
    disagreements=1e-1,
    logit_error=1e-2,
)


def compare(
    wanted: Run, got: Run, rule: Rule, *, file: str, reference: str, engine: str, labels: np.ndarray | None = None
) -> Verdict:
    """Judge `got` against `wanted`. Raises ValueError if they are not runs of networks of the same shape."""
    if list(wanted.spikes) != list(got.spikes) or wanted.logits.shape != got.logits.shape:
        raise ValueError(
            f"{file}: layers {list(got.spikes)} and logits {got.logits.shape} are not those of the checkpoint, "
            f"{list(wanted.spikes)} and {wanted.logits.shape}"
        )
    layers, first = [], None
    equal = np.ones(wanted.logits.shape[:2], bool)  # [T, B]: nothing has flipped up to here
    first_flips = unchanged = 0
    for name, spikes in wanted.spikes.items():
        if spikes.shape != got.spikes[name].shape:
            raise ValueError(f"{file}: layer {name} has shape {got.spikes[name].shape}, not {spikes.shape}")
        differs = spikes != got.spikes[name]
        layers.append(LayerVerdict(name=name, flips=int(differs.sum()), spikes=int(spikes.sum())))
        by_image = differs.reshape(*equal.shape, -1)
        so_far = np.logical_or.accumulate(by_image.any(2), axis=0)
        before = equal & ~np.concatenate([np.zeros_like(so_far[:1]), so_far[:-1]])
        first_flips += int(by_image[before].sum())
        unchanged += int(before.sum()) * by_image.shape[2]
        equal &= ~so_far
        if first is None and differs.any():
            first = location(name, differs)
    apart = np.abs(wanted.logits.astype(np.float64) - got.logits.astype(np.float64))
    wrong = more_than_rounding(apart, wanted, got, rule)
    answers = {name: run.logits.mean(0).argmax(-1) for name, run in (("reference", wanted), ("file", got))}
    agreement = float((answers["reference"] == answers["file"]).mean())
    if first is None and wrong.any():
        first = location("logits", wrong)
    flips, spikes_total, images = sum(x.flips for x in layers), sum(x.spikes for x in layers), wanted.logits.shape[1]
    allowed = np.ceil(rule.disagreements * images) / images
    few = first_flips <= np.ceil(rule.first_flips * unchanged)
    return Verdict(
        file=file,
        reference=reference,
        engine=engine,
        images=images,
        flips=flips,
        first_flips=first_flips,
        unchanged=unchanged,
        spikes=spikes_total,
        layers=tuple(layers),
        max_logit_difference=float(apart.max()),
        argmax_agreement=agreement,
        first_difference=first,
        rule=rule.text,
        accuracy=None if labels is None else {name: float((a == labels).mean()) for name, a in answers.items()},
        ok=bool(few and 1 - agreement <= allowed + 1e-12 and not wrong.any()),
    )


def more_than_rounding(apart: np.ndarray, wanted: Run, got: Run, rule: Rule) -> np.ndarray:
    """Which logits, that are `apart` [T, B, K], differ by more than the rule allows where their spikes are equal."""
    last = list(wanted.spikes)[-1]
    same_spikes = (wanted.spikes[last] == got.spikes[last]).reshape(*apart.shape[:2], -1).all(2)
    close = apart <= rule.logit_error * np.abs(wanted.logits).max()  # False for NaN
    return same_spikes[..., None] & ~close


def location(layer: str, differs: np.ndarray) -> dict[str, Any]:
    """The first step (from 1) at which a layer differs [T, B, ...], and the first image (from 0) at that step."""
    by_step = differs.reshape(len(differs), -1).any(1)
    step = int(by_step.argmax())
    image = int(differs[step].reshape(differs.shape[1], -1).any(1).argmax())
    return {"layer": layer, "step": step + 1, "image": image}


ENGINES: dict[str, tuple[str, ...]] = {
    ".onnx": ("onnxruntime", "onnx"),
    ".net": ("lava", "reference"),
    ".nir": ("nir",),
}
"""What can run a file, by its suffix; the first is taken unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Hold an exported file against its checkpoint on real images."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt that the file was exported from."""
    file: Annotated[Path, Positional]
    """The .onnx, .net or .nir file."""
    samples: int | None = None
    """Test images; default: 256 for .onnx, 16 for .net and .nir."""
    engine: Literal["auto", "onnxruntime", "onnx", "lava", "reference", "nir"] = "auto"
    """What runs the file: onnxruntime or onnx (its reference evaluator) for .onnx; lava or reference for .net; our
    executor of NIR nodes, nir, for .nir."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path | None = None
    """The report to write; default: verify.json beside the checkpoint."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        named(self.out, ".json")


def main(config: VerifyConfig) -> tuple[Verdict, dict[str, Any]]:
    """Verify; the verdict, and the report that verify.json holds.

    Raises ValueError for a file that cannot be judged, NotVerified if Lava fails.
    """
    from export.images import real_images
    from train.checkpoint import Checkpoint

    allowed = ENGINES.get(config.file.suffix)
    if allowed is None:
        raise ValueError(f"{config.file}: the suffix must be {', '.join(ENGINES)}")
    if config.engine not in ("auto", *allowed):
        raise ValueError(f"--engine {config.engine} does not run {config.file.suffix}; use {' or '.join(allowed)}")
    if not config.file.is_file():
        raise ValueError(f"{config.file}: no such file")
    engine: Any = allowed[0] if config.engine == "auto" else config.engine
    checkpoint = Checkpoint.load_student(config.checkpoint)
    samples = config.samples or (256 if config.file.suffix == ".onnx" else 16)
    real = real_images(checkpoint, split="test", limit=samples, root=config.data_root)
    match config.file.suffix:
        case ".onnx":
            from export.verify_onnx import verify_onnx

            verdict = verify_onnx(checkpoint, config.file, real.images, labels=real.labels, engine=engine)
        case ".net":
            from export.verify_netx import verify_netx

            verdict = verify_netx(checkpoint, config.file, real.images, engine=engine).verdict
        case _:
            from export.verify_nir import verify_nir

            verdict, _ = verify_nir(checkpoint, config.file, real.images)
    return verdict, {**verdict.to_json(), "on": real.describe(), "checkpoint_sha256": checkpoint.sha256}


def table(verdict: Verdict) -> str:
    """Flipped spikes of every LIF layer as lines of text."""
    width = max(len(layer.name) for layer in verdict.layers)
    rows = [f"{layer.name:<{width}}  {layer.spikes:>12,}  {layer.flips:>8,}" for layer in verdict.layers]
    return "\n".join([f"{'layer':<{width}}  {'spikes':>12}  {'flipped':>8}", *rows])


@judged
def command(argv: list[str]) -> int:
    """Parse, verify, print; 0 if the file does what the checkpoint does, else 1."""
    from train.record import write_json

    config = cli.parse(VerifyConfig, argv=argv, prog="python -m export.verify", description=__doc__ or "")
    verdict, report = main(config)
    print(table(verdict))
    print(verdict)
    out = config.out or config.checkpoint.parent / "verify.json"
    write_json(out, report)
    print(f"\nwritten: {out}")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
