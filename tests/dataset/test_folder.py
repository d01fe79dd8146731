"""Folders of images: decoding, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.protocols import UserError
from dataset import base, dataset_dict
from dataset.base import data_options
from dataset.images import folder
from dataset.images.resident import ResidentData
from tests.dataset.test_dataset import gathered, loader
from tests.support.shared import shared


def save(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    for part, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("bee", "ant")):
            for k in range(count):
                save(tmp_path / part / name / f"{k}.png", seed=100 * c + k)
    return tmp_path


def read(root: Path, **options) -> ResidentData:
    return dataset_dict["folder"](data_options(root, **options))


def test_folder_decodes_as_torchvision_resizes_and_crops(tree):
    transforms = pytest.importorskip("torchvision.transforms")
    save(tree / "train" / "ant" / "tall.jpg", (33, 57))
    save(tree / "train" / "ant" / "wide.JPEG", (101, 50))
    save(tree / "train" / "bee" / "inner" / "deep.webp")  # as ImageFolder, at any depth
    save(tree / "train" / "bee" / "grey.png", mode="L")
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "bee" / ".DS_Store").write_bytes(b"x")
    data = read(tree, image_size=24)
    assert data.classes == ("ant", "bee") and data.train_labels.tolist() == [0] * 6 + [1] * 6
    assert data.flips and data.shapes["image"] == (3, 24, 24) and data.pad == 3 and len(data.test) == 4
    reference = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24)])
    names = [
        "ant/0.png",
        "ant/1.png",
        "ant/2.png",
        "ant/3.png",
        "ant/tall.jpg",
        "ant/wide.JPEG",
        "bee/0.png",
        "bee/1.png",
        "bee/2.png",
        "bee/3.png",
        "bee/grey.png",
        "bee/inner/deep.webp",
    ]
    for got, name in zip(data.train_images, names, strict=True):
        with Image.open(tree / "train" / name) as image:
            assert np.array_equal(got.numpy(), np.asarray(reference(image.convert("RGB")))), name
    assert read(tree).shapes["image"] == (3, 32, 32)


def test_folder_takes_test_for_val_and_needs_neither_with_a_held_out_slice(tree):
    (tree / "val").rename(tree / "test")
    assert len(read(tree).test) == 4
    (tree / "test").rename(tree / "elsewhere")
    with pytest.raises(UserError, match="neither val/ nor test/"):
        read(tree)
    data = read(tree, val_fraction=0.25)
    assert len(data.test) == 2 and len(data.train_labels) == 6


def test_folder_classes_that_differ_are_named(tree):
    save(tree / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match="only in train/: cat"):
        read(tree)
    (tree / "val" / "bee").rename(tree / "val" / "wasp")
    with pytest.raises(UserError, match="only in train/: bee, cat; only in val/: wasp"):
        read(tree)


@pytest.mark.parametrize("inner", ["", "images"])
def test_flat_val_is_named(tree, inner):
    for name in ("ant", "bee"):
        (tree / "val" / name).rename(tree / f"old_{name}")
    save(tree / "val" / inner / "0.png")
    with pytest.raises(UserError, match="not sorted into class folders"):
        read(tree)


def test_corrupt_images_are_named(tree):
    victim = tree / "train" / "bee" / "broken.jpg"
    save(victim, (300, 300))
    whole = victim.read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2], whole[:30]):
        victim.write_bytes(content)
        with pytest.raises(UserError, match="bee.broken.jpg' is corrupt"):
            read(tree)


def test_folders_without_images_are_named(tree, tmp_path_factory):
    (tree / "train" / "cow").mkdir()
    (tree / "val" / "cow").mkdir()
    with pytest.raises(UserError, match=r"train.cow' holds no images \(nothing\)"):
        read(tree)
    (tree / "train" / "cow" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"only files with the extensions .txt"):
        read(tree)
    bare = tmp_path_factory.mktemp("bare")
    with pytest.raises(UserError, match="has no folder train/; point --data_folder"):
        read(bare)
    (bare / "train").mkdir()
    with pytest.raises(UserError, match="holds no class folders"):
        read(bare)


def test_a_set_beyond_half_of_the_memory_is_refused_before_decoding(tree, monkeypatch):
    needed = 12 * 32 * 32 * 3 + 8 * 40 * 40 * 3
    monkeypatch.setattr(base, "free", lambda: 2 * needed)
    read(tree)
    monkeypatch.setattr(base, "free", lambda: 2 * needed - 2)
    monkeypatch.setattr(folder, "decode_all", None)
    with pytest.raises(UserError, match=r"12 images at 32x32 need 0.00 GiB.*more than half of the 0.00 GiB"):
        read(tree)


def test_folder_on_real_photographs():
    data = read(shared("imagenette_small"), image_size=64)
    assert len(data.train_labels) == 600 and len(data.test) == 200 and data.num_classes == 10
    assert data.classes[0] == "n01440764" and data.num_crops == 17 * 17 * 2
    image = gathered(loader(data, 50))[0]
    assert image.shape == (600, 3, 64, 64) and 0.3 < image.mean() < 0.6
    with pytest.raises(UserError, match="not sorted into class folders"):
        read(shared("tiny-imagenet-200"))
