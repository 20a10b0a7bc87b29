"""The networks by name; one definition each is a teacher (ReLU) or a student (LIF)."""

from collections.abc import Callable

from train.config import NetConfig
from train.errors import OWN, unknown
from train.networks import resnet, sew, vgg, zoo
from train.networks.network import Network, Places, firing_rates, lif_layers
from train.registry import Registry


__all__ = ["NETWORKS", "Network", "Places", "build", "firing_rates", "lif_layers"]

NETWORKS: Registry[Callable[[NetConfig], Network]] = Registry(
    "network",
    {
        **dict.fromkeys(vgg.PLANS, vgg.vgg),
        **dict.fromkeys(resnet.PLANS, resnet.resnet),
        **dict.fromkeys(sew.DEPTHS, sew.sew_resnet),
    },
)
WITHOUT_POOLING = frozenset(NETWORKS) - frozenset(vgg.POOLED)


def build(config: NetConfig) -> Network:
    """The network that `config` names, with fresh weights; `sj:NAME` is a model of SpikingJelly's zoo.

    Raises ValueError for an unknown name (with the nearest ones), images too small for the network, or an option that
    the network does not have.
    """
    if config.name not in NETWORKS and not config.name.startswith(zoo.PREFIX):
        raise unknown("network", config.name, [*NETWORKS, f"{zoo.PREFIX}NAME"], more=OWN)
    if config.pool != "avg" and (config.name in WITHOUT_POOLING or config.name.startswith(zoo.PREFIX)):
        raise ValueError(f"net.pool is for {' and '.join(vgg.POOLED)}; {config.name} has no pooling to choose")
    return NETWORKS.get(config.name, zoo.zoo)(config)
