import dataclasses
import hashlib
import os

import pytest
import torch
from torch import nn

from train import teachers
from train.checkpoint import CheckpointError
from train.config import DataConfig
from train.data import Dataset, Split, load
from train.features import Observed
from train.torchvision_guard import import_torchvision


def dataset(**changes) -> Dataset:
    """RGB images of 64 pixels, 7 classes."""
    split = Split(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8), labels=torch.zeros(1).long(), indices=torch.arange(1)
    )
    fields = {
        **{"name": "folder", "train": split, "val": split, "test": split, "classes": tuple("abcdefg")},
        **{"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "size": 64, "channels": 3, "mirror": True, "md5": {}},
    }
    return Dataset(**fields | changes)


def model(name: str = "resnet18", classes: int = 7) -> nn.Module:
    """torchvision's network with random weights, also in its normalisations' statistics."""
    torch.manual_seed(0)
    made = import_torchvision().models.get_model(name, weights=None, num_classes=classes).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return made


@pytest.fixture
def saved(tmp_path):
    """resnet18's weights in a file, and the network."""
    made = model()
    torch.save(made.state_dict(), tmp_path / "r18.pth")
    return tmp_path / "r18.pth", made


def test_every_residual_network_of_torchvision_is_known():
    assert {"resnet18", "resnet34", "resnet152", "wide_resnet50_2", "resnext50_32x4d"} <= set(teachers.names())
    assert not {"vgg16", "resnet3d", "fcn_resnet50"} & set(teachers.names())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_answers_and_features_are_those_of_torchvision(tmp_path, name):
    made = model(name)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    teacher = teachers.load(f"torchvision:{name}@{tmp_path / 'w.pth'}", dataset())
    network = teacher.network()
    assert not network.training
    images = teacher.preprocess(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8))
    wanted: dict[str, torch.Tensor] = {}
    for path in ("layer1", "layer2", "layer3", "layer4", "avgpool"):
        made.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: wanted.__setitem__(path, out.clone())
        )
    places = network.places
    observed = Observed(network, (*places.stages, places.penultimate))
    with torch.no_grad():
        logits, features = observed(images)
        assert torch.equal(logits, made(images))
        assert torch.equal(network(images.expand(3, -1, -1, -1, -1)), network(images.expand(3, -1, -1, -1, -1).mean(0)))
    for i, stage in enumerate(places.stages, 1):
        assert torch.equal(features[stage], wanted[f"layer{i}"])
    assert torch.equal(features[places.penultimate], wanted["avgpool"].flatten(1))
    classifier = network.get_submodule(places.classifier)
    torch.testing.assert_close(classifier(features[places.penultimate]), logits)


def test_what_is_said_of_a_teacher(saved):
    path, made = saved
    teacher = teachers.load(f"torchvision:resnet18@{path}", dataset())
    assert (teacher.net.name, teacher.net.in_channels, teacher.net.size, teacher.net.num_classes) == (
        *("torchvision:resnet18", 3),
        *(64, 7),
    )
    assert (teacher.net.spiking, teacher.net.width) == (False, 1.0)
    assert teacher.labels == tuple("abcdefg")
    assert teacher.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (teacher.preprocess.mean, teacher.preprocess.std, teacher.preprocess.size) == (
        *((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        64,
    )
    assert teacher.weights.keys() == teacher.network().state_dict().keys()
    assert len(teacher.weights) == len(made.state_dict())


def test_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown torchvision teacher 'resnet43'; did you mean .*resnet34"):
        teachers.load("torchvision:resnet43", dataset())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": tuple("abc")},
            "it knows 7 classes of images with 3 channels, folder has 3 classes and 3 channels",
        ),
        ({"channels": 2, "name": "cifar10_dvs"}, "with 3 channels, cifar10_dvs has 7 classes and 2 channels"),
    ],
)
def test_another_number_of_classes_or_channels_is_refused(saved, change, message):
    with pytest.raises(ValueError, match=message):
        teachers.load(f"torchvision:resnet18@{saved[0]}", dataset(**change))


def test_files_that_are_missing_foreign_or_of_another_model_are_refused(saved, tmp_path):
    path, _ = saved
    with pytest.raises(ValueError, match=r"resnet18@.*nowhere\.pth: no such file"):
        teachers.load(f"torchvision:resnet18@{tmp_path / 'nowhere.pth'}", dataset())
    with pytest.raises(ValueError, match=r"r18\.pth does not hold the weights of resnet34: .*layer1\.2"):
        teachers.load(f"torchvision:resnet34@{path}", dataset())
    (tmp_path / "half.pth").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"half\.pth is no file of weights, or a damaged one"):
        teachers.load(f"torchvision:resnet18@{tmp_path / 'half.pth'}", dataset())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold the weights of a residual network"):
        teachers.load(f"torchvision:resnet18@{tmp_path / 'other.pth'}", dataset())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_never_runs(tmp_path):
    torch.save(Malicious(tmp_path / "ran"), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no file of weights"):
        teachers.load(f"torchvision:resnet18@{tmp_path / 'evil.pth'}", dataset())
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """torchvision's entry for resnet18 as if its published file were one of random weights; fetching counts."""
    made = model(classes=1000)
    source = tmp_path / "source.pth"
    torch.save(made.state_dict(), source)
    start = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    models = import_torchvision().models
    real = models.get_model_weights("resnet18").DEFAULT

    @dataclasses.dataclass
    class Entry:
        url: str
        meta: dict
        transforms: object
        fetched: int = 0
        works: bool = True

    entry = Entry(f"https://example.org/resnet18-{start}.pth", real.meta, real.transforms)

    class Weights(list):
        DEFAULT = entry

    def fetch(url, path, hash_prefix, progress):
        if not entry.works:
            raise OSError("no route to host")
        assert hash_prefix == start
        entry.fetched += 1
        with open(path, "wb") as file:
            file.write(source.read_bytes())

    monkeypatch.setattr(models, "get_model_weights", lambda name: Weights([entry]))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return entry, source


def wordnet(count: int = 1000) -> tuple[str, ...]:
    return tuple(f"n{i:08}" for i in range(count))


def test_imagenet_weights_are_fetched_once_after_saying_how_large(imagenet, capsys):
    entry, _ = imagenet
    big = dataset(size=224, classes=wordnet())
    teacher = teachers.load("torchvision:resnet18", big)
    assert f"Fetching {entry.url} (47 MB)" in capsys.readouterr().out
    assert teachers.load("torchvision:resnet18", big).sha256 == teacher.sha256
    assert (entry.fetched, capsys.readouterr().out) == (1, "")
    assert teacher.preprocess.mean == (0.485, 0.456, 0.406)
    assert teacher.preprocess.std == (0.229, 0.224, 0.225)


def test_the_published_file_is_known_by_its_content_wherever_it_lies(imagenet):
    entry, source = imagenet
    teacher = teachers.load(f"torchvision:resnet18@{source}", dataset(size=224, classes=wordnet()))
    assert teacher.preprocess.mean == (0.485, 0.456, 0.406)
    assert entry.fetched == 0


def test_failed_download_says_what_to_do(imagenet):
    entry, _ = imagenet
    entry.works = False
    with pytest.raises(ValueError, match=r"no route to host.*--teacher torchvision:resnet18@PATH"):
        teachers.load("torchvision:resnet18", dataset(size=224, classes=wordnet()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 64, "classes": wordnet()}, r"images of 224 pixels, folder has 64; set --data\.size 224"),
        ({"size": 224, "classes": wordnet(999)}, "knows 1000 classes .* has 999 classes"),
        ({"size": 224, "classes": tuple(f"dog{i}" for i in range(1000))}, "order of their WordNet ids .* dog0, dog1"),
    ],
)
def test_imagenet_weights_for_other_images_or_classes_are_refused(imagenet, change, message):
    with pytest.raises(ValueError, match=message):
        teachers.load("torchvision:resnet18", dataset(**change))


def test_imagenet_s_own_names_in_their_order_are_taken(imagenet):
    names = tuple(imagenet[0].meta["categories"])
    assert teachers.load("torchvision:resnet18", dataset(size=224, classes=names)).labels == names


def test_a_checkpoint_is_a_teacher_of_its_own_classes_and_size(teacher):
    digits = load(DataConfig())
    assert teachers.load(teacher, digits).labels == digits.classes
    with pytest.raises(ValueError, match=r"it knows 10 classes .* folder has 7"):
        teachers.load(teacher, dataset())
    with pytest.raises(ValueError, match="it takes 1 channels of 8 pixels, folder has 3 of 64"):
        teachers.load(str(teacher), dataset(classes=digits.classes))


def test_a_student_is_no_teacher(student):
    with pytest.raises(CheckpointError, match="a spiking student, not a teacher"):
        teachers.load(student, load(DataConfig()))


def test_a_teacher_that_a_recipe_makes_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"no such file yet; train it first: python -m train\.teacher tser-table1/cifar100-resnet34-teacher"
    with pytest.raises(ValueError, match=message):
        teachers.load("runs/cifar100-resnet34/teacher.pt", dataset())
    with pytest.raises(CheckpointError, match=r"mine\.pt: no such file"):
        teachers.load("mine.pt", dataset())
