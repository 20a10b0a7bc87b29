"""The teacher that `--teacher` names: a checkpoint of this project, or one of torchvision's residual networks.

PATH                      a teacher.pt that train.teacher wrote
torchvision:NAME          with torchvision's ImageNet weights, fetched if torch's cache does not hold them
torchvision:NAME@PATH     with weights from a file of NAME's own state_dict
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from train import parallel
from train.checkpoint import Checkpoint, Preprocess
from train.config import RECIPES, NetConfig, TeacherConfig
from train.data import Dataset
from train.errors import unknown
from train.networks import Network, Places
from train.recipe import find, known
from train.torchvision_guard import import_torchvision


PREFIX = "torchvision:"


@dataclass(frozen=True, kw_only=True)
class TorchvisionTeacher(Checkpoint):
    """A residual network of torchvision; `weights` are those of `network`, which names its parts differently."""

    def network(self) -> Network:
        """The network in eval mode, as a stem and a row of modules, so that all its features have a path."""
        network = rebuilt(self.net)
        network.load_state_dict(self.weights)
        return network.eval()


def load(spec: str | Path, dataset: Dataset) -> Checkpoint:
    """The teacher that `spec` names, which must fit the data set.

    Raises ValueError for a model that torchvision does not have (with the nearest names), for a file that is missing
    or does not fit, and for a teacher of other classes, channels or image size than the data set's.
    """
    spec = str(spec)
    if spec.startswith(PREFIX):
        return _torchvision(spec, dataset)
    if not Path(spec).is_file() and (recipe := made_by(Path(spec))):
        raise ValueError(f"--teacher {spec}: no such file yet; train it first: python -m train.teacher {recipe[0]}")
    found = Checkpoint.load_teacher(spec)
    if found.labels != dataset.classes:
        raise ValueError(
            f"--teacher {spec}: it knows {len(found.labels)} classes ({', '.join(found.labels[:3])}, ..), "
            f"{dataset.name} has {len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ..); "
            f"train one with `python -m train.teacher --data.name {dataset.name}`"
        )
    if (found.net.in_channels, found.net.size) != (dataset.channels, dataset.size):
        raise ValueError(
            f"--teacher {spec}: it takes {found.net.in_channels} channels of {found.net.size} pixels, "
            f"{dataset.name} has {dataset.channels} of {dataset.size}"
        )
    return found


def made_by(path: Path) -> tuple[str, TeacherConfig] | None:
    """Name and settings of the recipe that writes a teacher to `path`; None if there is none."""
    for name in known(RECIPES):
        if name.endswith("-teacher"):
            config = find(name, RECIPES).over(TeacherConfig())
            if config.out is not None and config.out / "teacher.pt" == path:
                return name, config
    return None


def names() -> list[str]:
    """torchvision's residual networks."""
    models = import_torchvision().models
    known = models.list_models(module=models)
    return [name for name in known if models.get_model_builder(name).__module__ == "torchvision.models.resnet"]


def rebuilt(config: NetConfig) -> Network:
    """The network `torchvision:NAME` with fresh weights, of torchvision's own modules.

    torchvision flattens the features in a function; here a module does it, which a hook can reach.
    """
    make = import_torchvision().models.get_model
    model = make(config.name.removeprefix(PREFIX), weights=None, num_classes=config.num_classes)
    parts = OrderedDict(model.named_children())
    classifier = parts.pop("fc")
    stem = nn.Sequential(OrderedDict((name, parts.pop(name)) for name in ("conv1", "bn1")))
    body = nn.Sequential(OrderedDict(**parts, flatten=nn.Flatten(), fc=classifier))
    stages = tuple(f"body.{name}" for name in parts if name.startswith("layer"))
    return Network(config, stem, body, Places(stages=stages, penultimate="body.flatten", classifier="body.fc"))


def _torchvision(spec: str, dataset: Dataset) -> TorchvisionTeacher:
    name, _, file = spec.removeprefix(PREFIX).partition("@")
    if name not in names():
        raise unknown("torchvision teacher", name, names())
    path = Path(file) if file else _imagenet_file(name)
    weights, sha256 = _read(path, spec)
    official = _official(name, sha256)
    classes, channels = weights["fc.weight"].shape[0], weights["conv1.weight"].shape[1]
    if (classes, channels) != (len(dataset.classes), dataset.channels):
        raise ValueError(
            f"--teacher {spec}: it knows {classes} classes of images with {channels} channels, {dataset.name} has "
            f"{len(dataset.classes)} classes and {dataset.channels} channels; train a teacher with "
            f"`python -m train.teacher --data.name {dataset.name}`"
        )
    # Weights that are not torchvision's own are taken to be trained on images normalised as the data set says.
    preprocess = Preprocess(mean=dataset.mean, std=dataset.std, size=dataset.size)
    if official:
        preprocess = _imagenet_preprocess(official, spec, dataset)
    net = NetConfig(name=f"{PREFIX}{name}", spiking=False, in_channels=channels, size=dataset.size, num_classes=classes)
    renamed = {f"{'stem' if key.startswith(('conv1.', 'bn1.')) else 'body'}.{key}": weights[key] for key in weights}
    teacher = TorchvisionTeacher(net=net, weights=renamed, preprocess=preprocess, labels=dataset.classes, sha256=sha256)
    try:
        teacher.network()
    except RuntimeError as error:
        raise ValueError(f"--teacher {spec}: {path} does not hold the weights of {name}: {_first(error)}") from error
    return teacher


def _imagenet_preprocess(official: Any, spec: str, dataset: Dataset) -> Preprocess:
    """How torchvision's weights want their images. Raises ValueError where the data set's do not become such ones."""
    transform, classes = official.transforms(), tuple(official.meta["categories"])
    (side,) = transform.crop_size
    if dataset.size != side:
        raise ValueError(
            f"--teacher {spec}: ImageNet's weights are for images of {side} pixels, {dataset.name} has {dataset.size}; "
            f"set --data.size {side}"
        )
    # ImageNet's folders are named by WordNet ids, whose order is that of the classes; other names have another order.
    wordnet = all(name[0] == "n" and name[1:].isdigit() for name in dataset.classes)
    if not wordnet and dataset.classes != classes:
        raise ValueError(
            f"--teacher {spec}: it knows ImageNet's classes in the order of their WordNet ids (n01440764, n01443537, "
            f"..); {dataset.name} has {', '.join(dataset.classes[:3])}, ..; name the class folders by these ids"
        )
    return Preprocess(mean=tuple(transform.mean), std=tuple(transform.std), size=side)


def _official(name: str, sha256: str) -> Any:
    """The entry of torchvision's own weights that a file is, by what it holds; None if it is another."""
    for entry in import_torchvision().models.get_model_weights(name):
        if sha256.startswith(_hash_in(entry.url)):
            return entry
    return None


def _hash_in(url: str) -> str:
    """torchvision's files are called NAME-HASH.pth; HASH starts the file's sha256."""
    return Path(urlparse(url).path).stem.rpartition("-")[2]


def _imagenet_file(name: str) -> Path:
    """torchvision's best ImageNet weights in torch's cache; fetched, after saying so, if they are not there."""
    entry = import_torchvision().models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    if path.is_file():
        return path
    size = entry.meta["_file_size"] * 2**20 / 1e6
    parallel.say(f"Fetching {entry.url} ({size:.0f} MB) to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=_hash_in(entry.url), progress=False)
    except (OSError, RuntimeError) as error:  # no network, no space, or not the file that was expected
        raise ValueError(
            f"--teacher {PREFIX}{name}: {entry.url} could not be fetched: {error}. Fetch it in another way and give "
            f"--teacher {PREFIX}{name}@PATH"
        ) from error
    return path


def _read(path: Path, spec: str) -> tuple[Mapping[str, Tensor], str]:
    """A file's tensors by name, and its sha256. Reading never runs code from it."""
    if not path.is_file():
        raise ValueError(f"--teacher {spec}: {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file provokes in the reader
        raise ValueError(
            f"--teacher {spec}: {path} is no file of weights, or a damaged one ({_first(error)})"
        ) from error
    if not isinstance(content, Mapping) or not {"conv1.weight", "fc.weight"} <= content.keys():
        raise ValueError(
            f"--teacher {spec}: {path} does not hold the weights of a residual network of torchvision (conv1.weight .. "
            "fc.weight); save them with torch.save(model.state_dict(), PATH)"
        )
    return content, hashlib.sha256(path.read_bytes()).hexdigest()


def _first(error: Exception) -> str:
    """The first line of an error, and of what load_state_dict lists the first thing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
