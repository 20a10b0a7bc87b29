"""Read a bundle: the folder that `python -m export.bundle` writes and the server serves.

A bundle is `bundle.json` beside the files it lists. Nothing of it is used before its schema is understood and the
SHA-256 of every listed file agrees, so a half-copied or altered bundle is refused at start, by name, and not served.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from serve.exits import Exit, Rule


FORMAT = 2
DEFAULT_FOLDER = Path("runs/latest/bundle")
ENV_FOLDER = "TSERVE_BUNDLE"
WRITE_AGAIN = "write the bundle again: python -m export.bundle CKPT"

Joules = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[float, Field(ge=1)]
Precision = Literal["fp32", "fp16", "int8"]
Form = Literal["unrolled", "step"]


class BundleError(ValueError):
    """A bundle that cannot be served; the message names the file, what is wrong and what to do."""


class Record(BaseModel):
    """A part of bundle.json: frozen, every number finite; keys that this server does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class InputRecord(Record):
    """The image that the network takes."""

    channels: Literal[1, 3]
    height: PositiveInt
    width: PositiveInt

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


class ModelRecord(Record):
    """The two ONNX files of one precision: all T steps in one run, and one step with its states going in and out."""

    unrolled: str
    step: str


class SynapseRecord(Record):
    """A spike-driven layer with weights; one tap (a nonzero input under a kernel position) costs `sops_per_tap`.

    kind "ac": its inputs are spikes, an operation is an addition; "mac": they are not, it is a multiplication too.
    """

    name: str
    kind: Literal["ac", "mac"]
    sops_per_tap: NonNegativeInt


class EnergyRecord(Record):
    """Joules per operation of the named chip, how operations are counted, and the counts that no image changes."""

    chip: str
    convention: str | None = None
    ac_J: Joules
    mac_J: Joules
    static_macs: NonNegativeInt
    ann_macs: NonNegativeInt
    ann_energy_J: Joules


class MetricsRecord(Record):
    """Accuracies on the test set, in [0, 1]; `accuracy_by_T[t-1]` reads the first t steps only."""

    accuracy: Share
    teacher_accuracy: Share | None = None
    accuracy_by_T: tuple[Share, ...] = ()


class ExitRow(Record):
    """What a threshold of the exit rule gives: on the test set, and (val_...) on the images it was calibrated on."""

    threshold: Share
    mean_steps: Steps
    accuracy: Share
    energy_J: Joules
    val_mean_steps: Steps | None
    val_accuracy: Share | None


class SplitRecord(Record):
    """Images that something was measured on."""

    dataset: str
    split: str
    images: PositiveInt


class ExitRecord(Record):
    """When an image has had enough steps: the rule, the threshold that was chosen, and all that were measured.

    The chosen one loses at most `tolerance` of the accuracy of all T steps on the images of `calibrated_on`.
    """

    rule: Rule
    threshold: Share
    relax: Annotated[float, Field(ge=0, le=4)] = 0.0
    tolerance: Share
    calibrated_on: SplitRecord | None
    """None: there were no validation images, and all T steps are run."""
    measured_on: SplitRecord
    table: tuple[ExitRow, ...]

    @model_validator(mode="after")
    def _chosen_from_the_table(self) -> Self:
        if self.threshold not in {row.threshold for row in self.table}:
            raise ValueError(f"threshold {self.threshold} is in no row of the table")
        return self

    @property
    def exit(self) -> Exit:
        """The rule with the chosen threshold and relaxation."""
        return Exit(self.rule, self.threshold, self.relax)


class SampleRecord(Record):
    """An image of the test set with its true label."""

    file: str
    label: str


class FileRecord(Record):
    """What a listed file must be."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: NonNegativeInt


class Description(Record):
    """bundle.json."""

    format: Literal[2]
    name: str
    created: str
    T: PositiveInt
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    input: InputRecord
    models: dict[Precision, ModelRecord]
    precision: Precision
    """The one that is served by default."""
    exits: dict[Precision, ExitRecord]
    lif_layers: tuple[str, ...]
    synapses: tuple[SynapseRecord, ...]
    energy: EnergyRecord
    metrics: MetricsRecord
    dataset: str
    samples: tuple[SampleRecord, ...]
    checkpoint_sha256: str
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _precisions_agree(self) -> Self:
        if self.precision not in self.models:
            raise ValueError(f"precision {self.precision} has no entry under 'models'")
        if self.models.keys() != self.exits.keys():
            raise ValueError(f"'models' are {', '.join(self.models)}, but 'exits' are {', '.join(self.exits)}")
        return self

    @model_validator(mode="after")
    def _files_are_listed_and_inside(self) -> Self:
        models = {file for model in self.models.values() for file in (model.unrolled, model.step)}
        unlisted = models.union(sample.file for sample in self.samples) - self.files.keys()
        if unlisted:
            raise ValueError(f"{', '.join(sorted(unlisted))}: used, but not listed under 'files'")
        paths = map(PurePosixPath, self.files)
        outside = [str(path) for path in paths if path.is_absolute() or ".." in path.parts]
        if outside:
            raise ValueError(f"{', '.join(sorted(outside))}: file names must stay inside the bundle")
        return self


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files were verified: the folder and what bundle.json says."""

    folder: Path
    about: Description

    def model_file(self, precision: Precision, form: Form) -> Path:
        """An ONNX model; KeyError for a precision that the bundle lacks."""
        model = self.about.models[precision]
        return self.folder / (model.unrolled if form == "unrolled" else model.step)

    def sample_file(self, index: int) -> Path:
        """The image of the sample at `index`."""
        return self.folder / self.about.samples[index].file


def locate() -> Path:
    """Give the folder that is served: TSERVE_BUNDLE if it is set, else runs/latest/bundle."""
    return Path(os.environ.get(ENV_FOLDER) or DEFAULT_FOLDER)


def read(folder: Path | str) -> Bundle:
    """Read and verify the bundle in `folder`.

    Raises BundleError if there is none, if bundle.json does not follow the schema, or if a listed file is missing or
    is not the one that was written.
    """
    folder = Path(folder)
    about = parse(_text_of(folder), where=folder / "bundle.json")
    for name, record in about.files.items():
        _verify(folder, name, record)
    return Bundle(folder=folder, about=about)


def parse(text: str, *, where: Path) -> Description:
    """Parse the text of bundle.json; `where` names the file in errors (BundleError)."""
    try:
        fields: Any = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{where}: not JSON ({error}); {WRITE_AGAIN}") from None
    if isinstance(fields, dict) and fields.get("format") != FORMAT:
        raise BundleError(f"{where}: bundle format {fields.get('format')!r}, this server reads {FORMAT}; {WRITE_AGAIN}")
    try:
        return Description.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'bundle'}: {entry['msg']}" for entry in error.errors()[:5]
        )
        raise BundleError(f"{where}: {wrong}; {WRITE_AGAIN}") from None


def _text_of(folder: Path) -> str:
    try:
        return (folder / "bundle.json").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder.absolute()}: no bundle here (no bundle.json). Make one with `python -m export.bundle CKPT` or "
            f"`make demo`, or set {ENV_FOLDER} to the folder of another"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / 'bundle.json'}: cannot be read: {error}") from None


def _verify(folder: Path, name: str, record: FileRecord) -> None:
    again = f"copy the whole folder again, or {WRITE_AGAIN}"
    try:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{folder / name}: listed in bundle.json, but {error.strerror or error}; {again}") from None
    if digest != record.sha256:
        size = (folder / name).stat().st_size
        raise BundleError(
            f"{folder / name}: not the file that bundle.json lists: SHA-256 {digest[:12]}.. ({size} bytes), "
            f"expected {record.sha256[:12]}.. ({record.bytes} bytes); {again}"
        )
