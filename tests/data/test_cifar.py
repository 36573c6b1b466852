"""Small sets in both layouts, written by hand, and the real set where MTL_TEST_DATA names a folder with cifar10/."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from mtl.data.cifar import cifar10

REAL = os.environ.get("MTL_TEST_DATA", "")
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """torchvision's layout with two training images and one test image, and torchvision told their checksums."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()

    def write(name: str, content: dict[str, object]) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    # A row is 1,024 red values, then green, then blue, each row by row.
    rows = np.repeat(np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8), 1024, axis=1)
    rows[0, 33] = 255  # red of row 1, column 1
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", {"data": rows[:2], "labels": [9, 0]})])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", {"data": rows[2:], "labels": [3]})])
    name, checksum = write("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path


@pytest.mark.parametrize("prefix", [".", "cifar10"])
def test_torchvision_layout_is_read(batches, tmp_path_factory, prefix):
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(batches / "cifar-10-batches-py", root / prefix / "cifar-10-batches-py")
    data = cifar10(str(root))
    assert data.images.shape == (3, 3, 32, 32)
    assert data.images[:, :, 0, 0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert (data.images[0, 0] == 255).nonzero().tolist() == [[1, 1]]
    assert data.classes.tolist() == [9, 0, 3]
    assert data.class_names == tuple(NAMES)
    assert data.official_split.tolist() == [0, 0, 2]


def test_torchvision_layout_is_resized_and_greyed(batches):
    data = cifar10(str(batches), image_size=(8, 16), grey=True)
    assert data.images.shape == (3, 1, 8, 16)
    assert data.images[1, 0, 0, 0] == round(0.299 * 40 + 0.587 * 50 + 0.114 * 60)


def test_a_damaged_batch_is_refused(batches):
    (batches / "cifar-10-batches-py" / "test_batch").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"data\.root must hold CIFAR-10.*cannot read .*cifar-10-batches-py.*corrupted"):
        cifar10(str(batches))


def test_a_download_without_network_says_what_to_put_where(tmp_path, monkeypatch):
    def fail(dataset: CIFAR10) -> None:
        raise URLError("no route")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(
        FileNotFoundError, match=r"no route.*download cifar-10-python\.tar\.gz elsewhere and copy it into data\.root"
    ):
        cifar10(str(tmp_path), download=True)


@pytest.mark.parametrize("prefix", [".", "cifar10"])
def test_class_folders_are_numbered_as_torchvision_does(tmp_path, prefix):
    for level, name in enumerate(NAMES):
        for split in ("train", "test"):
            path = tmp_path / prefix / split / name / "00001.jpg"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * level, 0, 0)).save(path)
    data = cifar10(str(tmp_path))
    assert data.images.shape == (20, 3, 32, 32)
    assert data.class_names == tuple(NAMES)
    assert data.classes.tolist() == [*range(10), *range(10)]
    assert data.images[:, 0, 0, 0].tolist() == pytest.approx([20 * (index % 10) for index in range(20)], abs=3)
    assert data.official_split.tolist() == [0] * 10 + [2] * 10
    shutil.rmtree(tmp_path / prefix / "train" / "truck")
    shutil.rmtree(tmp_path / prefix / "test" / "truck")
    with pytest.raises(ValueError, match=r"with the classes airplane, .*truck; got .*horse, ship$"):
        cifar10(str(tmp_path))


def test_nothing_there_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"looked in {tmp_path / 'cifar-10-batches-py'}.*data\.download=true"):
        cifar10(str(tmp_path))


@pytest.mark.skipif(not Path(REAL, "cifar10").is_dir() or not REAL, reason="needs MTL_TEST_DATA, a folder with cifar10/")
def test_cifar10_has_its_published_counts_and_mean():
    data = cifar10(REAL)
    train = data.official_split == 0
    assert data.classes[train].bincount().tolist() == [5000] * 10
    assert data.classes[~train].bincount().tolist() == [1000] * 10
    mean = np.array([data.images[train, channel].float().mean() / 255 for channel in range(3)])
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-4)  # the figures in common use
