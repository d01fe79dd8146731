"""Small sets of images in their published layouts, made of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def pixels(n: int, size: int, rng: np.random.Generator, labels) -> np.ndarray:
    """Images whose mean colour tells the class."""
    noise = rng.integers(0, 40, (n, size, size, 3))
    return (noise + 20 * np.asarray(labels)[:, None, None, None]).astype(np.uint8)


def stl10(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """root/stl10_binary in the official byte layout, 40 + 20 images; what was written, part by part."""
    rng, folder = np.random.default_rng(0), root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(STL10_CLASSES) + "\n")
    images = {}
    for part, n in (("train", 40), ("test", 20)):
        labels = np.arange(n) % 10
        images[part] = pixels(n, 96, rng, labels), labels
        with open(folder / f"{part}_X.bin", "wb") as file:
            for image in images[part][0]:
                for channel in range(3):
                    for column in range(96):  # column-major, as Matlab writes
                        file.write(image[:, column, channel].tobytes())
        (labels + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    return images


def tiny_imagenet(folder: Path) -> Path:
    """tiny-imagenet-200/ as unpacked, with three classes of four and two images."""
    root, rng = folder / "tiny-imagenet-200", np.random.default_rng(1)
    wnids, lines = ["n03", "n01", "n02"], []
    (root / "val" / "images").mkdir(parents=True)
    for c, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(pixels(1, 64, rng, [3 * c])[0]).save(
                root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", "JPEG"
            )
        boxes = "".join(f"{wnid}_{i}.JPEG\t0\t0\t62\t62\n" for i in range(4))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        for i in range(2):
            name = f"val_{3 * i + c}.JPEG"
            Image.fromarray(pixels(1, 64, rng, [3 * c])[0]).convert("L").save(root / "val" / "images" / name, "JPEG")
            lines.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def cifar100(folder: Path) -> Path:
    """cifar100.npz of noise: four images of each class to train, one to test. The folder it is in."""
    rng, sizes = np.random.default_rng(0), {"train": 400, "test": 100}
    images = {f"{part}_images": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in sizes.items()}
    labels = {f"{part}_labels": np.arange(n) % 100 for part, n in sizes.items()}
    np.savez(folder / "cifar100.npz", **images, **labels, classes=[f"class{i}" for i in range(100)])
    return folder


def jpegs(root: Path, classes: int, **counts: int) -> Path:
    """root/PART/classN/, with so many images for each class of a part."""
    rng = np.random.default_rng(0)
    for part, n in counts.items():
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i, image in enumerate(pixels(n, 48, rng, n * [label])):
                Image.fromarray(image).save(folder / f"{i}.jpg")
    return root


def folder(path: Path) -> None:
    """16 images of noise without labels."""
    path.mkdir()
    for i, image in enumerate(pixels(16, 32, np.random.default_rng(0), np.zeros(16))):
        Image.fromarray(image).save(path / f"{i}.png")
