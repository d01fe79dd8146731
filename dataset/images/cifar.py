"""CIFAR-100 and CIFAR-10 (Krizhevsky, 2009): 32x32 RGB, 50,000 training and 10,000 test images, crop and flip.

Read from `<root>/<name>.npz` if it is there (train_images [N, 32, 32, 3] uint8, train_labels [N], test_images,
test_labels, classes), else from the official files through torchvision, which checks their MD5 sums.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.protocols import UserError
from dataset.base import DataOptions
from dataset.images.resident import ResidentData, Split, resident, resized

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")


def _load(name: str, num_classes: int, options: DataOptions) -> ResidentData:
    """UserError if it is absent, incomplete or cannot be fetched."""
    root = options.root
    if not root.is_dir():
        raise UserError(
            f"the data folder '{root}' does not exist; create it (mkdir -p '{root}') or point "
            f"--data_folder at the folder that holds {name}"
        )
    archive = root / f"{name}.npz"
    train, test, classes = (
        _from_npz(archive, num_classes) if archive.exists() else _official(name, root, options.download)
    )
    train, test = resized(train, test, options.image_size or 32)
    return resident(name, classes, train, test, options, flips=True)


load_cifar100, load_cifar10 = partial(_load, "cifar100", 100), partial(_load, "cifar10", 10)


def _from_npz(path: Path, num_classes: int) -> tuple[Split, Split, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            found = {key: file[key] for key in KEYS if key not in missing}
    except (OSError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"'{path}' cannot be read: it is truncated or not an npz archive ({error}); "
            "write it again or delete it to use the official files"
        ) from error
    if missing:
        raise UserError(f"'{path}' has no {', '.join(missing)}; it must hold {', '.join(KEYS)}")
    classes = [str(c) for c in found["classes"].ravel()]
    if len(classes) != num_classes:
        raise UserError(f"'{path}' names {len(classes)} classes, expected {num_classes}; is it another data set?")
    return (_checked(path, "train", found, num_classes), _checked(path, "test", found, num_classes), classes)


def _checked(path: Path, part: str, found: dict[str, Any], num_classes: int) -> Split:
    images, labels = found[f"{part}_images"], found[f"{part}_labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise UserError(
            f"'{path}': {part}_images is {images.dtype} {list(images.shape)}, expected uint8 [N, 32, 32, 3]"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"'{path}': {part}_labels is {labels.dtype} {list(labels.shape)}, expected integers [{len(images)}]"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"'{path}': {part}_labels run from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}"
        )
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _official(name: str, root: Path, download: bool) -> tuple[Split, Split, list[str]]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(
            f"reading the official files of {name} needs torchvision, which cannot be imported ({error}); "
            f"install it or put {name}.npz into '{root}'"
        ) from error
    kind = datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10
    archive, folder = root / kind.filename, root / kind.base_folder
    # An intact archive only needs extracting, which torchvision also calls a download.
    intact = archive.is_file() and _md5(archive) == kind.tgz_md5
    try:
        train, test = (kind(str(root), train=part, download=download or intact) for part in (True, False))
    except (OSError, EOFError, RuntimeError, tarfile.TarError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(_diagnosis(name, kind, archive, folder, intact, download, error)) from error
    whole = [
        Split(torch.from_numpy(np.ascontiguousarray(part.data)), torch.tensor(part.targets, dtype=torch.int64))
        for part in (train, test)
    ]
    return whole[0], whole[1], list(train.classes)


def _diagnosis(
    name: str, kind: Any, archive: Path, folder: Path, intact: bool, download: bool, error: Exception
) -> str:
    """One sentence: what is there, what is wrong with it, and which file to put where."""
    reason = f" ({error})" if download or intact else ""
    if archive.is_file() and not intact:
        return (
            f"'{archive}' is incomplete or damaged: its checksum differs from that of {kind.url}{reason}; delete it "
            f"and fetch it again, or put {name}.npz next to it"
        )
    if folder.is_dir():
        members = [member for member, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
        missing = [member for member in members if not (folder / member).is_file()]
        what = f"lacks {', '.join(missing)}" if missing else "holds files whose checksum is wrong"
        return (
            f"'{folder}' {what}{reason}; delete that folder and put {kind.filename} from {kind.url} or {name}.npz "
            f"into '{archive.parent}'"
        )
    return (
        f"no {name} in '{archive.parent}', and it cannot be downloaded{reason or ' because downloading is off'}; "
        f"put {kind.filename} from {kind.url} or {name}.npz there"
    )


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
