import dataclasses
import hashlib
import os
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly import configure

from train import runs
from train.checkpoint import Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.datasets import events
from train.datasets.guard import import_data_sets
from train.metrics import run_split
from train.networks import build


ROOT = Path(os.environ.get("TSERVE_DATA", "data"))


def recording(seed: int, count: int = 400) -> dict[str, np.ndarray]:
    """Random events of a 128 x 128 camera, most of them in one corner so that many share a pixel."""
    random = np.random.default_rng(seed)
    x, y = (np.minimum(random.geometric(0.05, count) - 1, 127) for _ in range(2))
    return {"t": np.sort(random.integers(0, 10_000, count)), "x": x, "y": y, "p": random.integers(0, 2, count)}


def counted(found: dict[str, np.ndarray], T: int) -> np.ndarray:
    """The loop over events: frames [T, 2, 128, 128] of equally many events, the last with what is left."""
    frames = np.zeros((T, 2, 128, 128), int)
    for i, (x, y, p) in enumerate(zip(found["x"], found["y"], found["p"], strict=True)):
        frames[min(i // (len(found["x"]) // T), T - 1), p, y, x] += 1
    return frames


def shrunk(monkeypatch, name: str, train: int, test: int) -> events.Recordings:
    """The set as if it had been published with so many recordings."""
    small = dataclasses.replace(events.SETS[name], train=train, test=test)
    monkeypatch.setitem(events.SETS, name, small)
    return small


@pytest.fixture
def dvs(tmp_path, monkeypatch):
    """CIFAR10-DVS with recordings 9, 10 and 11 of every class, 10 and 11 for the test, as SpikingJelly unpacks them."""
    monkeypatch.setattr(events, "TRAIN_PER_CLASS", 10)
    small = shrunk(monkeypatch, "cifar10_dvs", 10, 20)
    for label, name in enumerate(small.classes):
        folder = tmp_path / "CIFAR10DVS" / "events_np" / name
        folder.mkdir(parents=True)
        for number in (9, 10, 11):
            np.savez(folder / f"cifar10_{name}_{number}.npz", **recording(100 * label + number))
    return tmp_path


@pytest.fixture
def gesture(tmp_path, monkeypatch):
    """DVS128 Gesture with a training recording of each class and a test recording of two."""
    shrunk(monkeypatch, "dvs_gesture", 11, 2)
    for part, labels in (("train", range(11)), ("test", (2, 10))):
        for label in range(11):
            folder = tmp_path / "DVS128Gesture" / "events_np" / part / str(label)
            folder.mkdir(parents=True)
            if label in labels:
                np.savez(folder / f"user01_led_{0}.npz", **recording(label))
    # torchvision refuses class folders without files
    for label in set(range(11)) - {2, 10}:
        (tmp_path / "DVS128Gesture" / "events_np" / "test" / str(label)).rmdir()
    return tmp_path


def config(root: Path, name: str = "cifar10_dvs", **changes) -> DataConfig:
    return DataConfig(**{"name": name, "root": root, "size": 128, "val_fraction": 0.0} | changes)


def test_recordings_become_the_counts_of_their_events(dvs):
    dataset = load(config(dvs, frames=3))
    assert dataset.train.images.shape == (10, 3, 2, 128, 128)
    assert dataset.train.labels.tolist() == list(range(10))
    assert dataset.test.labels.tolist() == [*range(10), *range(10)]
    for split, numbers in ((dataset.train, (9,)), (dataset.test, (10, 11))):
        for i, label in enumerate(split.labels.tolist()):
            wanted = counted(recording(100 * label + numbers[i // 10]), 3)
            assert np.array_equal(split.images[i].numpy(), wanted)
    assert (dataset.frames, dataset.size, dataset.channels, dataset.mirror) == (3, 128, 2, True)
    assert dataset.classes[3] == "cat"


def test_a_network_sees_the_counts(dvs):
    dataset = load(config(dvs))
    preprocess = Preprocess(mean=dataset.mean, std=dataset.std, size=dataset.size)
    seen = preprocess(dataset.train.images)
    torch.testing.assert_close(seen, dataset.train.images.float(), rtol=1e-6, atol=0)


def test_size_sums_the_cameras_pixels_and_keeps_the_number_of_events(dvs):
    whole, small = load(config(dvs)), load(config(dvs, size=64))
    pairs = whole.train.images.long().reshape(10, 4, 2, 64, 2, 64, 2).sum((4, 6))
    assert torch.equal(small.train.images, pairs.clamp(max=255).to(torch.uint8))
    assert load(config(dvs, size=None)).train.images.shape == (10, 4, 2, 48, 48)


@given(size=st.integers(1, 128), seed=st.integers(0, 99))
def test_shares_of_a_pixel_add_up_to_it_and_lie_where_the_pixel_lies(size, seed):
    share = events.overlaps(128, size)
    assert share.shape == (size, 128)
    assert share.sum(0) == pytest.approx(np.ones(128), abs=1e-4)
    assert share.sum(1) == pytest.approx(np.full(size, 128 / size), rel=1e-4)
    at = np.random.default_rng(seed).integers(128)
    cells = np.flatnonzero(share[:, at] > 1e-4)
    assert cells.tolist() == sorted({int(at * size / 128 + 1e-9), int((at + 1) * size / 128 - 1e-4)})


def test_counts_above_a_byte_become_the_largest():
    frames = np.full((1, 2, 128, 128), 200)
    assert (events.summed(frames, 128) == 200).all()
    assert (events.summed(frames, 64) == 255).all()


def test_gestures_have_the_classes_that_their_folders_number(gesture):
    dataset = load(config(gesture, "dvs_gesture"))
    assert dataset.train.labels.tolist() == list(range(11))
    assert dataset.test.labels.tolist() == [2, 10]
    assert np.array_equal(dataset.train.images[10].numpy(), counted(recording(10), 4))
    assert (dataset.classes[1], dataset.classes[2], dataset.mirror) == ("right hand wave", "left hand wave", False)


def test_limit_and_validation_take_recordings_in_turn(dvs):
    dataset = load(config(dvs, limit=5, val_fraction=0.4))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (3, 2, 20)
    assert torch.cat([dataset.train.labels, dataset.val.labels]).sort().values.tolist() == list(range(5))


def test_md5_changes_with_a_recordings_events(dvs):
    before = load(config(dvs)).md5
    np.savez(dvs / "CIFAR10DVS/events_np/cat/cifar10_cat_9.npz", **recording(1))
    for path in (dvs / "CIFAR10DVS/frames_number_4_split_by_number/cat").iterdir():
        path.unlink()
    assert load(config(dvs, frames=2)).md5 != before


def test_another_number_of_recordings_is_refused(dvs):
    (dvs / "CIFAR10DVS/events_np/cat/cifar10_cat_10.npz").unlink()
    with pytest.raises(ValueError, match="holds 10 training and 19 test recordings, it should be 10 and 20"):
        load(config(dvs))


def test_unfinished_work_and_damaged_frames_are_refused_with_what_to_remove(dvs):
    load(config(dvs))
    made = dvs / "CIFAR10DVS/frames_number_4_split_by_number"
    path = made / "cat/cifar10_cat_9.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cifar10_cat_9\.npz: no frames that can be read .* remove .*by_number"):
        load(config(dvs))
    np.savez(path, frames=np.zeros((2, 2, 128, 128)))
    with pytest.raises(ValueError, match=r"cifar10_cat_9\.npz: frames of shape \(2, 2, 128, 128\)"):
        load(config(dvs))
    made.with_name(f"{made.name}.building").touch()
    with pytest.raises(ValueError, match="unfinished dataset preprocessing marker"):
        load(config(dvs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_dvs", r"airplane\.zip, .*truck\.zip missing in .*get them with --data\.download \(about 8 GB\)"),
        ("dvs_gesture", r"DvsGesture\.tar\.gz, .* missing in .*by hand from https://ibm.* \(about 3 GB\)"),
    ],
)
def test_missing_archives_are_named_and_nothing_is_fetched(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load(config(tmp_path, name))
    assert not list(tmp_path.iterdir())


def test_damaged_archive_is_neither_deleted_nor_unpacked(tmp_path):
    archive = tmp_path / "CIFAR10DVS/download/airplane.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"half")
    with pytest.raises(ValueError, match="not the published ones"):
        load(config(tmp_path))
    assert [path.name for path in (tmp_path / "CIFAR10DVS").iterdir()] == ["download"]
    assert archive.read_bytes() == b"half"


def aedat2(found: dict[str, np.ndarray]) -> bytes:
    """Events as CIFAR10-DVS was published: a header, then big-endian pairs of address and time."""
    x, y = 127 - found["y"], 127 - found["x"]
    address = (y << 8) | (x << 1) | (1 - found["p"])
    return b"#!AER-DAT2.0\r\n" + np.stack([address, found["t"]], 1).astype(">u4").tobytes()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """The published archives in small: SpikingJelly's class with their md5, and the folder that a server gives out."""
    monkeypatch.setattr(events, "TRAIN_PER_CLASS", 1)
    small = shrunk(monkeypatch, "cifar10_dvs", 10, 10)
    folder = tmp_path / "archives"
    folder.mkdir()
    served = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    Thread(target=server.serve_forever, daemon=True).start()
    sums = []
    for label, name in enumerate(small.classes):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for number in range(2):
                archive.writestr(f"{name}/cifar10_{name}_{number}.aedat", aedat2(recording(2 * label + number)))
        content = (folder / f"{name}.zip").read_bytes()
        url = f"http://127.0.0.1:{server.server_port}/{name}.zip"
        sums.append((f"{name}.zip", url, hashlib.md5(content).hexdigest()))
    official = events._official("cifar10_dvs")
    monkeypatch.setattr(official, "resource_url_md5", classmethod(lambda cls: sums))
    yield folder
    server.shutdown()
    server.server_close()


def test_published_archives_are_unpacked_and_counted(archives, tmp_path, capsys):
    root = tmp_path / "data"
    (root / "CIFAR10DVS").mkdir(parents=True)
    archives.rename(root / "CIFAR10DVS/download")
    dataset = load(config(root))
    assert "once" in capsys.readouterr().out
    for i, image in enumerate(dataset.train.images):
        assert np.array_equal(image.numpy(), counted(recording(2 * i), 4))
    assert load(config(root)).md5 == dataset.md5
    assert capsys.readouterr().out == ""


def test_download_says_how_large_and_gets_what_is_missing(archives, tmp_path, capsys):
    dataset = load(config(tmp_path / "data", download=True))
    assert "Fetching CIFAR10-DVS (about 8 GB)" in capsys.readouterr().out
    assert len(dataset.train) == 10


def test_failed_download_can_be_tried_again(archives, tmp_path):
    away = archives.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="could not be fetched"):
        load(config(tmp_path / "data", download=True))
    away.rename(archives)
    assert len(load(config(tmp_path / "data", download=True)).train) == 10


def test_student_and_teacher_run_over_recordings(dvs):
    dataset = load(config(dvs, size=16, frames=2))
    preprocess = Preprocess(mean=dataset.mean, std=dataset.std, size=dataset.size)
    for spiking, steps in ((True, 2), (False, 1)):
        net = runs.fit_to(dataset, NetConfig(width=0.25, T=2, spiking=spiking))
        assert (net.event, net.in_channels, net.size, net.num_classes) == (True, 2, 16, 10)
        network = build(net).eval()
        outputs = run_split(network, dataset.test, preprocess, batch_size=7)
        assert outputs.logits.shape == (steps, 20, 10)
        assert torch.equal(outputs.labels, dataset.test.labels)
        alone = network(preprocess(dataset.test.images[13:14]).transpose(0, 1))
        torch.testing.assert_close(outputs.logits[:, 13:14], alone.reshape(steps, 1, 10), rtol=1e-4, atol=1e-4)


def test_a_student_of_other_time_steps_than_frames_is_refused(dvs):
    dataset = load(config(dvs, size=16, frames=2))
    with pytest.raises(ValueError, match=r"2 frames .* 4 time steps.* set --net\.T 2 or --data\.frames 4"):
        runs.fit_to(dataset, NetConfig(T=4))
    runs.fit_to(dataset, NetConfig(T=4, spiking=False))


def test_sides_above_the_cameras_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.size is 129, but CIFAR10-DVS was recorded with 128 x 128"):
        load(config(tmp_path, size=129))


@pytest.mark.skipif(
    not (ROOT / "events/sample_nmnist.bin").is_file(), reason="no events/sample_nmnist.bin in TSERVE_DATA"
)
def test_events_of_a_real_camera_are_all_counted(dvs):
    """N-MNIST's sensor, its recording laid out as one of CIFAR10-DVS's."""
    found = import_data_sets("utils").load_ATIS_bin(str(ROOT / "events/sample_nmnist.bin"))
    np.savez(dvs / "CIFAR10DVS/events_np/airplane/cifar10_airplane_9.npz", **found)
    image = load(config(dvs)).train.images[0]
    assert np.array_equal(image.numpy(), counted({k: v.astype(int) for k, v in found.items()}, 4))
    small = load(config(dvs, size=48)).train.images[0]
    assert small.long().sum() == pytest.approx(len(found["t"]), rel=0.02)


@pytest.mark.parametrize(("python", "threads"), [((3, 11, 7), 1), ((3, 11, 8), 5)])
def test_events_are_counted_in_one_thread_where_python_cannot_parse_in_two(monkeypatch, python, threads):
    monkeypatch.setattr(configure, "max_threads_number_for_datasets_preprocess", 5)
    monkeypatch.setattr(events.sys, "version_info", python)
    with events._one_thread_where_python_needs_it():
        within = configure.max_threads_number_for_datasets_preprocess
    assert (within, configure.max_threads_number_for_datasets_preprocess) == (threads, 5)
