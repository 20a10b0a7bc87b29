"""What bundle.json says of when an image has had enough time steps, as it was measured when the bundle was written."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from serve.energy_record import Joules, Record
from serve.exits import Exit, Rule


Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[float, Field(ge=1)]


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
    accuracy_by_T: tuple[Share, ...]
    """In place t - 1, of the mean of the first t steps of every image of `measured_on`, in this precision."""
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
