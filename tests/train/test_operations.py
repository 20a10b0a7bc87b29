"""Operations are those of TSER's Table 4, by the counting that its numbers follow."""

import pytest

from train.config import NetConfig
from train.networks import NETWORKS
from train.networks.operations import count_operations


CIFAR100 = {"T": 4, "in_channels": 3, "size": 32, "num_classes": 100}


@pytest.mark.parametrize(
    ("options", "operations", "macs"),
    [  # TSER, Table 4: 2.23 G and 12.2 M; 1.26 G and 274.2 M
        ({"name": "resnet18"}, 2_229_051_792, 12_198_288),
        ({"name": "vgg16"}, 1_257_914_768, 274_235_792),
        ({"name": "vgg16", "pool": "max"}, 1_257_914_768, 9_551_872),
    ],
)
def test_operations_are_those_of_table_4(options: dict[str, str], operations: int, macs: int) -> None:
    counted = count_operations(NetConfig(**options, **CIFAR100))
    assert (counted.operations, counted.macs) == (operations, macs)


def test_the_macs_of_resnet18_are_the_stem_the_normalisations_and_the_classifier() -> None:
    counted = count_operations(NetConfig(name="resnet18", **CIFAR100))
    macs = {entry.name: entry.macs for entry in counted.layers if entry.macs}
    norms = {name: value for name, value in macs.items() if name.endswith("norm")}
    assert sum(norms.values()) == 2 * 614_400
    assert {name: value for name, value in macs.items() if name not in norms} == {
        "stem.conv": 1_769_472,
        "body.classifier": 51_300,
    }
    lifs = [entry for entry in counted.layers if entry.name.endswith(("act", "act1", "act2"))]
    assert sum(entry.operations for entry in lifs) == 557_056
    assert not any(entry.taps for entry in lifs)


def test_without_padding_resnet18_does_what_neurobench_counts() -> None:
    assert count_operations(NetConfig(name="resnet18", **CIFAR100)).taps == 1_927_621_632


def test_what_reads_sums_of_spikes_or_averages_multiplies() -> None:
    macs = {e.name: e.macs for e in count_operations(NetConfig(name="sew_resnet18", **CIFAR100)).layers}
    assert macs["body.layer1.0.conv1.conv"] == 0  # spikes, the largest of nine
    assert macs["body.layer1.1.conv1.conv"] > 0  # a sum of spikes
    assert macs["body.layer1.1.conv2.conv"] == 0
    macs = {e.name: e.macs for e in count_operations(NetConfig(name="resnet19_ckd", **CIFAR100)).layers}
    assert macs["body.layer2.0.conv1.conv"] == macs["body.layer2.0.shortcut.pool"] == 0
    assert macs["body.layer2.0.shortcut.conv"] == 128 * 256 * 16 * 16


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_grow_with_the_steps_alone(name: str) -> None:
    one, four = (count_operations(NetConfig(name=name, **{**CIFAR100, "T": T})) for T in (1, 4))
    assert 4 * one.operations == four.operations
    assert one.layers == four.layers
    assert 0 < four.macs < four.operations
    assert 0 < four.taps < four.operations


def test_a_model_of_the_zoo_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sj:spikformer_cifar10: operations are counted for vgg_small, vgg11"):
        count_operations(NetConfig(name="sj:spikformer_cifar10", **CIFAR100))
