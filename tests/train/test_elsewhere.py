"""A network with weights from elsewhere becomes a checkpoint that is what it was, or is refused."""

from pathlib import Path

import pytest
import torch

from export.card import training
from train.checkpoint import Checkpoint
from train.config import DataConfig, NetConfig
from train.data import load
from train.elsewhere import adopt
from train.networks import Network, build, lif_layers


DIGITS = DataConfig(name="digits", val_fraction=0)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    network = build(NetConfig(width=0.25, T=2))
    network.train()
    with torch.no_grad():
        network(torch.randn(64, 1, 8, 8))  # statistics of its own
    return network


def test_an_adopted_student_gives_its_logits_after_a_round_trip(network: Network, tmp_path: Path) -> None:
    adopt(network, DIGITS, mean=(0.25,), std=(0.5,)).save(str(tmp_path / "student.pt"))
    found = Checkpoint.load_student(tmp_path / "student.pt")
    images = load(DIGITS).test.images[:16]
    with torch.no_grad():
        theirs = network.eval()((images.float() / 255 - 0.25) / 0.5)
        assert torch.equal(found.network()(found.preprocess(images)), theirs)
    assert theirs.std() > 0
    assert found.labels == tuple("0123456789")
    assert training(found.provenance) == "Trained elsewhere, taken over by TSERve"


def test_by_default_images_are_normalised_as_in_training_here(network: Network) -> None:
    dataset = load(DIGITS)
    assert (adopt(network, DIGITS).preprocess.mean, adopt(network, DIGITS).preprocess.std) == (
        dataset.mean,
        dataset.std,
    )


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not for digits: net.in_channels is 3, not 1; net.size is 32, not 8"):
        adopt(build(NetConfig(in_channels=3, size=32)), DIGITS)


def test_a_network_that_was_changed_after_it_was_built_is_refused(network: Network) -> None:
    for lif in lif_layers(network).values():
        lif.v_threshold = 0.5
    with pytest.raises(ValueError, match="vgg_small, made again of its settings and these weights, is another network"):
        adopt(network, DIGITS)


def test_a_network_of_other_steps_is_refused(network: Network) -> None:
    network.hold.T = 3
    with pytest.raises(ValueError, match="vgg_small, made again"):
        adopt(network, DIGITS)


def test_weights_that_are_no_numbers_and_channels_that_are_missing_are_refused(network: Network) -> None:
    with pytest.raises(ValueError, match=r"preprocess.mean is .*; expected 1 finite numbers"):
        adopt(network, DIGITS, mean=(0.5, 0.5, 0.5))
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"stem.conv.weight holds a value that is not finite"):
        adopt(network, DIGITS)


def test_it_may_be_a_teacher(tmp_path: Path) -> None:
    teacher = build(NetConfig(width=0.25, spiking=False))
    adopt(teacher, DIGITS).save(tmp_path / "teacher.pt")
    assert Checkpoint.load_teacher(tmp_path / "teacher.pt").net.spiking is False
