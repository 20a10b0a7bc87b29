"""Read what a bundle says of its .net file for Loihi: student.net.json, or why there is none, from verify.json."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from serve.bundle import WRITE_AGAIN, Bundle, BundleError, Share
from serve.energy_record import Record


REPORT, VERIFICATION = "student.net.json", "verify.json"
CHIP_NAMES = {"loihi1": "Loihi 1", "loihi2": "Loihi 2"}

Count = Annotated[int, Field(ge=0, le=10**15)]
Size = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[float, Field(ge=0)]
R = TypeVar("R", bound=Record)
Resource = Literal["neurons", "synapse_words", "input_axons", "output_axons"]


class LayerRecord(Record):
    """A layer with weights as the file holds it, all integers; `weights` are those that are not zero."""

    name: str
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]
    """(C, H, W), or (N,)."""
    weights: Count
    vThMant: Count
    """It fires above this threshold, in units of the weights."""
    vDecay: Annotated[int, Field(ge=0, le=4096)]
    """The membrane loses this of 4096 parts at every step."""


class PlacementRecord(Record):
    """The same layer on its cores: `share` of what a core has is what the fullest core takes."""

    name: str
    cores: Size
    neurons: Count
    synapses: Count
    share: dict[Resource, Share]
    limited_by: Resource

    @model_validator(mode="after")
    def _limit_has_a_share(self) -> Self:
        if self.limited_by not in self.share:
            raise ValueError(f"limited by {self.limited_by}, of which 'share' says nothing")
        return self


class MappingRecord(Record):
    """All layers on the cores of one chip or several, by the model in hardware/mapping.py."""

    chip: str
    cores: Size
    cores_per_chip: Annotated[int, Field(ge=1, le=4096)]
    chips: Size
    layers: Annotated[tuple[PlacementRecord, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sums(self) -> Self:
        cores = sum(layer.cores for layer in self.layers)
        if cores != self.cores:
            raise ValueError(f"{self.cores} cores, but its layers have {cores}")
        if self.chips != -(-cores // self.cores_per_chip):
            raise ValueError(f"{cores} cores of {self.cores_per_chip} a chip are not {self.chips} chips")
        return self


class AccuracyRecord(Record):
    """Of the float student and of its integer twin, on the same images."""

    images: Size
    dataset: str
    split: str
    as_float: Share = Field(alias="float")
    as_integers: Share = Field(alias="integer")


class SamplesRecord(Record):
    """Of the float student and of the file itself, on the images that the file was run on; nothing if it was not."""

    as_float: Share | None = Field(None, alias="float")
    of_file: Share | None = Field(None, alias="file")


class LifRecord(Record):
    """A LIF layer that was compared."""

    name: str


class VerdictRecord(Record):
    """What came out when the file was run and every spike was held against the reference."""

    reference: str
    engine: str
    images: Size
    flips: Count
    spikes: Count
    layers: tuple[LifRecord, ...]
    max_logit_difference: Amount
    rule: str
    ok: bool


class ImageCostRecord(Record):
    """Means of one image. time_s: in a stream of images; latency_s: of one that comes alone."""

    synops: Amount
    updates: Amount
    steps: Size
    time_s: Amount
    latency_steps: Size
    latency_s: Amount
    energy_J: Amount
    static_energy_J: Amount


class SourceRecord(Record):
    """A figure that the estimate is made of, and who says so."""

    chip: str
    value: Amount
    unit: str
    source: str
    status: str


class SourcesRecord(Record):
    """All figures that the estimate is made of."""

    synaptic_operation: SourceRecord
    neuron_update: SourceRecord
    time_per_step: SourceRecord
    power_static: SourceRecord


class CostRecord(Record):
    """The estimate."""

    per_image: ImageCostRecord
    sources: SourcesRecord
    note: str


class InputRecord(Record):
    """How an image is sent."""

    encoding: str
    bits: Size


class Report(Record):
    """student.net.json."""

    format: Literal[2]
    file: str
    T: Size
    window: Size
    latency_steps: Size
    input: InputRecord
    layers: tuple[LayerRecord, ...]
    mapping: MappingRecord
    risks: tuple[str, ...]
    accuracy: AccuracyRecord
    accuracy_on_samples: SamplesRecord
    verify: VerdictRecord | None
    """None: the file was written without a run."""
    cost: CostRecord | None

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        names, placed = ([layer.name for layer in rows] for rows in (self.layers, self.mapping.layers))
        if names != placed:
            raise ValueError(f"'layers' are {', '.join(names)}, but those of 'mapping' are {', '.join(placed)}")
        return self


class ReasonRecord(Record):
    """Why there is no .net, if there is none."""

    unsupported: str | None = None


class VerificationRecord(Record):
    """verify.json, as far as it is about the .net."""

    netx: ReasonRecord


def read(bundle: Bundle) -> Report | str:
    """What the bundle says of its .net; the reason, a sentence, where the network has none.

    Raises BundleError where the files do not say so, or were changed since the bundle was read.
    """
    if REPORT in bundle.about.files:
        return _parsed(Report, bundle, REPORT)
    if VERIFICATION in bundle.about.files:
        reason = _parsed(VerificationRecord, bundle, VERIFICATION).netx.unsupported
        if reason is not None:
            return reason
    raise BundleError(f"the bundle holds no {REPORT}, and no {VERIFICATION} that says why; {WRITE_AGAIN}")


def _parsed(kind: type[R], bundle: Bundle, name: str) -> R:
    try:
        return kind.model_validate_json(bundle.content(name))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'all'}: {entry['msg']}" for entry in error.errors()[:5]
        )
        raise BundleError(f"{name}: {wrong}; {WRITE_AGAIN}") from None
