"""Students that were trained elsewhere: from a network with its weights to a checkpoint that every export takes."""

import dataclasses

import torch

from train.checkpoint import Checkpoint, Preprocess, misfit
from train.config import DataConfig
from train.data import load, time_first
from train.networks import Network
from train.record import circumstances
from train.runs import fit_to
from train.schema import to_dict


METHOD = "elsewhere"
"""What the record has in place of a method's name."""


def adopt(
    network: Network,
    data: DataConfig,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Checkpoint:
    """The checkpoint of a student that was trained elsewhere, for images of the data set that `data` names.

    network: of train.networks.build, its weights loaded; one of your own by a plugin (train/plugins.py). mean, std: how
    its images were normalised, per channel, in units of [0, 1]; by default as TSERve does for this data set.
    data.val_fraction must be 0 unless these validation images (train.datasets.dataset.train_and_val) were kept apart:
    exits and scales are chosen on them. Raises ValueError for a network of other images or classes, or one that is not
    the same when it is built again, and what `load` raises.
    """
    dataset = load(data)
    if network.config != (fitting := fit_to(dataset, network.config)):
        differing = [
            f"net.{field.name} is {getattr(network.config, field.name)}, not {getattr(fitting, field.name)}"
            for field in dataclasses.fields(fitting)
            if getattr(network.config, field.name) != getattr(fitting, field.name)
        ]
        raise ValueError(f"this network is not for {dataset.name}: {'; '.join(differing)}")
    recorded = {"data": to_dict(data), "net": to_dict(fitting), "method": {"name": METHOD}}
    found = Checkpoint(
        net=fitting,
        weights=network.state_dict(),
        preprocess=Preprocess(mean=mean or dataset.mean, std=std or dataset.std, size=dataset.size),
        labels=dataset.classes,
        provenance=circumstances(config=recorded, seed=None, dataset_md5=dataset.md5, device=None),
    )
    if wrong := misfit(found):
        raise ValueError(wrong)
    again, images = found.network(), time_first(found.preprocess(dataset.test.images[:2]))
    with torch.no_grad():
        same = torch.equal(network.eval()(images), again(images))
    if not same or str(network) != str(again):  # images may not tell: a neuron's settings show in the words, too
        raise ValueError(
            f"{fitting.name}, made again of its settings and these weights, is another network: whatever makes it "
            "what it is must stand in its NetConfig or in the function that builds it"
        )
    return found
