"""Read a bundle: the folder that `python -m export.bundle` writes and the server serves.

A bundle is `bundle.json` beside the files it lists. Nothing of it is used before its schema is understood and the
SHA-256 of every listed file agrees, so a half-copied or altered bundle is refused, by name, and not served. What is run
is opened from the bytes that agreed (`Bundle.content`): a folder that is replaced meanwhile gives an error, and never
a network of two bundles' parts.
"""

import errno
import hashlib
import json
import math
import stat
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from serve.energy_record import EnergyRecord, Pricing, Record
from serve.exit_record import ExitRecord, Share


FORMAT = 3
NAME = "bundle.json"
WRITE_AGAIN = "write the bundle again: python -m export.bundle CKPT"
COPY_AGAIN = f"copy the whole folder again, or {WRITE_AGAIN}"
MAKE_ONE = (
    "Make one with `python -m export.bundle CKPT` or `make demo`, or set TSERVE_BUNDLE to where another is: "
    "its folder, a folder of several, or bentoml:TAG"
)

Precision = Literal["fp32", "fp16", "int8"]
Form = Literal["unrolled", "step"]


class BundleError(ValueError):
    """A bundle that cannot be served; the message names the file, what is wrong and what to do."""


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

    def file(self, form: Form) -> str:
        """The name of the file of one form, as it is listed."""
        return self.unrolled if form == "unrolled" else self.step


class SynapseRecord(Record):
    """A spike-driven layer with weights; one tap (a nonzero input under a kernel position) costs `sops_per_tap`.

    kind "ac": its inputs are spikes, an operation is an addition; "mac": they are not, it is a multiplication too.
    """

    name: str
    kind: Literal["ac", "mac"]
    sops_per_tap: NonNegativeInt


class MetricsRecord(Record):
    """Accuracies on the test set, in [0, 1]; `accuracy_by_T[t-1]` reads the first t steps only."""

    accuracy: Share
    teacher_accuracy: Share | None = None
    accuracy_by_T: tuple[Share, ...] = ()


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

    format: Literal[3]
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
    lif_shapes: tuple[tuple[PositiveInt, ...], ...]
    """Of each LIF layer's neurons: (C, H, W), or (N,)."""
    synapses: tuple[SynapseRecord, ...]
    energy: EnergyRecord
    metrics: MetricsRecord
    dataset: str
    samples: tuple[SampleRecord, ...]
    checkpoint_sha256: str
    files: dict[str, FileRecord]

    @cached_property
    def pricing(self) -> Pricing:
        """The energy of an answer in every convention."""
        sizes = {"synapses": len(self.synapses), "lif_layers": len(self.lif_layers)}
        return Pricing.of(self.energy.conventions, **sizes)

    @cached_property
    def neurons(self) -> np.ndarray:
        """int64 [L]: how many each LIF layer has."""
        return np.array([math.prod(shape) for shape in self.lif_shapes], np.int64)

    @model_validator(mode="after")
    def _precisions_agree(self) -> Self:
        if self.precision not in self.models:
            raise ValueError(f"precision {self.precision} has no entry under 'models'")
        if self.models.keys() != self.exits.keys():
            raise ValueError(f"'models' are {', '.join(self.models)}, but 'exits' are {', '.join(self.exits)}")
        return self

    @model_validator(mode="after")
    def _an_accuracy_for_each_step(self) -> Self:
        for precision, record in self.exits.items():
            if len(record.accuracy_by_T) != self.T:
                raise ValueError(
                    f"exits.{precision}.accuracy_by_T has {len(record.accuracy_by_T)} values for T={self.T}"
                )
        return self

    @model_validator(mode="after")
    def _one_shape_each(self) -> Self:
        if len(self.lif_shapes) != len(self.lif_layers):
            raise ValueError(f"{len(self.lif_shapes)} 'lif_shapes' for {len(self.lif_layers)} 'lif_layers'")
        return self

    @model_validator(mode="after")
    def _energy_is_of_this_network(self) -> Self:
        if why := self.energy.misfit(synapses=len(self.synapses), lif_layers=len(self.lif_layers)):
            raise ValueError(f"'energy': {why}")
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
    id: str
    """The first 12 hexadecimal digits of bundle.json's SHA-256; with the list of files in it, it stands for all."""

    def content(self, name: str) -> bytes:
        """Read a listed file and verify what was read; BundleError, also if it was replaced since; KeyError."""
        record, path = self.about.files[name], self.folder / name
        try:
            with _opened(path) as file:
                data = file.read()
        except OSError as error:
            raise _unread(path, error) from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != record.sha256:
            raise _another(path, record, digest, len(data))
        return data

    def model_file(self, precision: Precision, form: Form) -> Path:
        """An ONNX model; KeyError for a precision that the bundle lacks."""
        return self.folder / self.about.models[precision].file(form)


def read(folder: Path | str) -> Bundle:
    """Read and verify the bundle in `folder`.

    Raises BundleError if there is none, if bundle.json does not follow the schema, or if a listed file is missing or
    is not the one that was written.
    """
    folder = Path(folder)
    data = _description(folder)
    try:
        about = parse(data.decode(), where=folder / NAME)
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / NAME}: not JSON ({error}); {WRITE_AGAIN}") from None
    for name, record in about.files.items():
        _verify(folder / name, record)
    return Bundle(folder=folder, about=about, id=hashlib.sha256(data).hexdigest()[:12])


def parse(text: str, *, where: Path) -> Description:
    """Parse the text of bundle.json; `where` names the file in errors (BundleError)."""
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
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


def _description(folder: Path) -> bytes:
    try:
        with _opened(folder / NAME) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder.absolute()}: no bundle here (no {NAME}). {MAKE_ONE}") from None
    except OSError as error:
        raise BundleError(f"{folder / NAME}: cannot be read: {error.strerror or error}") from None


def _opened(path: Path) -> BufferedReader:
    """Open a file to read; OSError unless it is a regular one: to open a named pipe waits for a writer, for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    return path.open("rb")


def _verify(path: Path, record: FileRecord) -> None:
    try:
        with _opened(path) as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise _unread(path, error) from None
    if digest != record.sha256:
        raise _another(path, record, digest, size)


def _unread(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: listed in {NAME}, but {error.strerror or error}; {COPY_AGAIN}")


def _another(path: Path, record: FileRecord, digest: str, size: int) -> BundleError:
    return BundleError(
        f"{path}: not the file that {NAME} lists: SHA-256 {digest[:12]}.. ({size} bytes), "
        f"expected {record.sha256[:12]}.. ({record.bytes} bytes); {COPY_AGAIN}"
    )
