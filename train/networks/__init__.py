"""The networks by name; one definition each is a teacher (ReLU) or a student (LIF)."""

from collections.abc import Callable

from train.config import NetConfig
from train.errors import unknown
from train.networks.network import Network, Places, firing_rates, lif_layers
from train.networks.resnet import BLOCKS, resnet
from train.networks.vgg import PLANS, vgg


__all__ = ["NETWORKS", "Network", "Places", "build", "firing_rates", "lif_layers"]

NETWORKS: dict[str, Callable[[NetConfig], Network]] = {
    **dict.fromkeys(PLANS, vgg),
    **dict.fromkeys(BLOCKS, resnet),
}


def build(config: NetConfig) -> Network:
    """The network that `config` names, with fresh weights.

    Raises ValueError for an unknown name (with the nearest ones) or images too small for the network.
    """
    if config.name not in NETWORKS:
        raise unknown("network", config.name, NETWORKS)
    return NETWORKS[config.name](config)
