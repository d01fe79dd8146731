"""CIFAR from our file and from the official ones: what is read, what is refused."""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from core.protocols import UserError
from dataset import base, dataset_dict
from dataset.base import DataOptions
from tests.dataset.test_dataset import loader
from tests.support.shared import shared


def arrays(num_classes: int, train: int = 300, test: int = 120) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {"train": train, "test": test}
    images = {f"{p}_images": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for p, n in parts.items()}
    labels = {f"{p}_labels": np.arange(n) % num_classes for p, n in parts.items()}
    return {**images, **labels, "classes": np.array([f"class{c}" for c in range(num_classes)])}


@pytest.mark.parametrize("name, num_classes", [("cifar100", 100), ("cifar10", 10)])
def test_cifar_from_npz(tmp_path, name, num_classes):
    content = arrays(num_classes)
    np.savez(tmp_path / f"{name}.npz", **content)
    data = dataset_dict[name](DataOptions(tmp_path, download=False))
    assert data.name == name and data.num_classes == num_classes and data.flips and data.num_crops == 162
    assert list(data.classes) == content["classes"].tolist() and data.shapes["image"] == (3, 32, 32)
    assert np.array_equal(data.train_images.numpy(), content["train_images"])
    assert np.array_equal(data.test.images.numpy(), content["test_images"])
    assert np.array_equal(data.test.labels.numpy(), content["test_labels"])
    larger = dataset_dict[name](DataOptions(tmp_path, image_size=64))
    assert larger.shapes["image"] == (3, 64, 64) and larger.pad == 8


def without(key):
    return lambda content: {k: v for k, v in content.items() if k != key}


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without("test_labels"), "has no test_labels"),
        (lambda c: {**c, "train_images": c["train_images"][:, :16]}, r"train_images is uint8 \[300, 16, 32, 3\]"),
        (lambda c: {**c, "train_images": c["train_images"].astype(np.float32)}, "train_images is float32"),
        (lambda c: {**c, "train_labels": c["train_labels"][:-1]}, r"train_labels is int64 \[299\]"),
        (lambda c: {**c, "test_labels": c["test_labels"] + 1}, "test_labels run from 1 to 100"),
        (lambda c: {**c, "classes": c["classes"][:10]}, "names 10 classes, expected 100"),
        (lambda c: {**c, "train_labels": c["train_labels"].astype(object)}, "is truncated or not an npz archive"),
    ],
)
def test_foreign_npz_is_refused(tmp_path, spoil, message):
    np.savez(tmp_path / "cifar100.npz", **spoil(arrays(100)))
    with pytest.raises(UserError, match=message) as caught:
        dataset_dict["cifar100"](DataOptions(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_npz_is_refused(tmp_path, keep):
    path = tmp_path / "cifar100.npz"
    np.savez(path, **arrays(100))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="truncated"):
        dataset_dict["cifar100"](DataOptions(tmp_path))


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "cifar100.npz"
    np.savez(path, **arrays(100))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 0xFF  # a flipped pixel, which only the archive's own checksum sees
    path.write_bytes(whole)
    with pytest.raises(UserError, match="cannot be read"):
        dataset_dict["cifar100"](DataOptions(tmp_path))


def test_absent_data_folder(tmp_path):
    for name in ("cifar100", "cifar10", "folder"):
        with pytest.raises(UserError, match="nowhere' does not exist"):
            dataset_dict[name](DataOptions(tmp_path / "nowhere"))


@pytest.fixture
def official(monkeypatch, tmp_path):
    """A small CIFAR-100 in the official layout, torchvision expecting its checksums, and no network."""
    datasets = pytest.importorskip("torchvision.datasets")
    content = arrays(100)

    def packed(part: str) -> bytes:
        rows = content[f"{part}_images"].transpose(0, 3, 1, 2).reshape(-1, 3072)
        return pickle.dumps({"data": rows, "fine_labels": content[f"{part}_labels"].tolist()})

    files = {
        "train": packed("train"),
        "test": packed("test"),
        "meta": pickle.dumps({"fine_label_names": content["classes"].tolist()}),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, blob in files.items():
            member = tarfile.TarInfo(f"{datasets.CIFAR100.base_folder}/{name}")
            member.size = len(blob)
            tar.addfile(member, io.BytesIO(blob))

    def md5(blob: bytes) -> str:
        return hashlib.md5(blob).hexdigest()

    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(files["test"])]])
    monkeypatch.setattr(
        datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5(files["meta"])}
    )
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", md5(archive.getvalue()))

    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    path = tmp_path / datasets.CIFAR100.filename
    path.write_bytes(archive.getvalue())
    return path, tmp_path / datasets.CIFAR100.base_folder, content


@pytest.mark.parametrize("download", [True, False])
def test_official_files_are_unpacked_checked_and_read_without_network(official, download):
    archive, folder, content = official
    options = DataOptions(archive.parent, download=download)
    data = dataset_dict["cifar100"](options)
    assert np.array_equal(data.train_images.numpy(), content["train_images"])
    assert np.array_equal(data.test.images.numpy(), content["test_images"])
    assert data.train_labels.tolist() == content["train_labels"].tolist()
    assert list(data.classes) == content["classes"].tolist()
    (folder / "train").unlink()  # the intact archive repairs the folder
    assert dataset_dict["cifar100"](options).checksum == data.checksum
    archive.unlink()
    assert dataset_dict["cifar100"](options).checksum == data.checksum


@pytest.mark.parametrize("download", [True, False])
def test_half_downloaded_cifar_is_named(official, download):
    archive, folder, _ = official
    options = DataOptions(archive.parent, download=download)

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            dataset_dict["cifar100"](options)
        assert "cifar100.npz" in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    dataset_dict["cifar100"](options)
    whole = archive.read_bytes()
    archive.unlink()
    (folder / "test").write_bytes((folder / "test").read_bytes()[:-1])
    refused("holds files whose checksum is wrong")
    (folder / "test").unlink()
    refused("lacks test")
    for member in folder.iterdir():
        member.unlink()
    folder.rmdir()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "delete it" in refused("is incomplete or damaged")
    archive.unlink()
    sentence = refused("no cifar100 in .*cannot be downloaded")
    assert ("no route to host" in sentence) == download and "cifar-100-python.tar.gz from https://" in sentence


@pytest.mark.slow  # 185 MB; test_cifar_from_npz reads a small file of this layout
def test_cifar100_complete(tmp_path):
    subprocess.run([sys.executable, str(shared("unpack.py")), str(tmp_path)], check=True, capture_output=True)
    data = dataset_dict["cifar100"](DataOptions(tmp_path, download=False))
    (tmp_path / "cifar100.npz").unlink()  # 185 MB that pytest would keep
    assert len(data.train_labels) == 50_000 and len(data.test) == 10_000
    assert data.train_labels.bincount().tolist() == [500] * 100 and data.test.labels.bincount().tolist() == [100] * 100
    mean = torch.stack([data.train_images[..., c].float().mean() / 255 for c in range(3)])
    assert torch.allclose(mean, torch.tensor([0.5071, 0.4867, 0.4408]), atol=2e-4)
    steps = loader(data, 64)
    assert len(steps) == 782 and len(steps.batch(781)) == 16


def test_cifar_enlarged_beyond_half_of_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "cifar10.npz", **arrays(10))
    monkeypatch.setattr(base, "free", lambda: 2**24)
    dataset_dict["cifar10"](DataOptions(tmp_path))
    with pytest.raises(UserError, match=r"images at 224x224 need .*choose a smaller --image_size"):
        dataset_dict["cifar10"](DataOptions(tmp_path, image_size=224))
