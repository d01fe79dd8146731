"""Any image-folder tree: `<root>/train/<class>/**` and `<root>/val/<class>/**` (or test/), decoded once into memory.

Every image becomes RGB, its shorter side is resized to `image_size` (32 by default) and the centre is cropped.
Classes are the sorted names of the folders in train/. Hidden files and folders are passed over.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from core.protocols import UserError
from dataset.base import DataOptions, Split, check_memory
from dataset.images.resident import ResidentData, resident

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


Sample = tuple[Path, int]  # file, class number


def load(options: DataOptions) -> ResidentData:
    """Decode the tree at options.root. UserError names the path and the way out; val/ may be absent if a slice of
    train is held out (val_fraction)."""
    root, size = options.root, options.image_size or 32
    if not root.is_dir():
        raise UserError(
            f"the data folder '{root}' does not exist; point --data_folder at a folder with train/ and val/"
        )
    if not (root / "train").is_dir():
        raise UserError(f"'{root}' has no folder train/; expected train/<class>/<image> and val/<class>/<image>")
    classes = class_names(root / "train")
    if not classes:
        raise UserError(f"'{root / 'train'}' holds no class folders; expected train/<class>/<image>")
    if len(classes) < 2:
        raise UserError(f"'{root / 'train'}' holds one class folder, {classes[0]}; a classifier needs at least two")
    found = {"train": _samples(root / "train", classes)}
    if not options.val_fraction:
        found["test"] = _samples(matching_classes(root, classes), classes)
    check_memory({part: len(samples) for part, samples in found.items()}, size)
    splits = {part: decode_all(samples, size) for part, samples in found.items()}
    return resident("folder", classes, splits["train"], splits.get("test"), options, flips=True)


def class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def images_below(path: str) -> bool:
    """Whether ImageFolder should list a file: an image, and not a hidden one."""
    return _is_image(Path(path)) and not Path(path).name.startswith(".")


def unsorted(folder: Path, place: Path) -> str:
    return (
        f"the images in '{place}' are not sorted into class folders; move each to "
        f"'{folder}/<class>/', with the class names of train/"
    )


def matching_classes(root: Path, classes: list[str], flat: Callable[[Path, Path], str] = unsorted) -> Path:
    """val/ or test/, with the classes of train/. flat: what to say of images outside class folders."""
    folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(
            f"'{root}' has neither val/ nor test/; add val/<class>/<image> or hold out a slice of train/ "
            "with --val_fraction"
        )
    names = class_names(folder)
    if names == classes:
        return folder
    places = [folder, *(folder / name for name in names if len(names) == 1)]  # TinyImageNet: val/images/*.JPEG
    for place in places:
        if place.name not in classes and any(_is_image(entry) for entry in place.iterdir()):
            raise UserError(flat(folder, place))
    differences = (
        ("only in train/", set(classes) - set(names)),
        (f"only in {folder.name}/", set(names) - set(classes)),
    )
    raise UserError(
        f"'{root}': train/ ({len(classes)}) and {folder.name}/ ({len(names)}) hold different classes, "
        + "; ".join(f"{where}: {_few(sorted(which))}" for where, which in differences if which)
        + "; give both the same class folders"
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _samples(folder: Path, classes: list[str]) -> list[Sample]:
    """Images below each class folder in sorted order; files that are none are passed over with one warning."""
    samples: list[Sample] = []
    strangers: list[Path] = []
    for label, name in enumerate(classes):
        files = []
        for place, inner, members in os.walk(folder / name, followlinks=True):
            inner[:] = sorted(entry for entry in inner if not entry.startswith("."))
            files += [Path(place) / member for member in sorted(members) if not member.startswith(".")]
        images = [file for file in files if _is_image(file)]
        others = [file for file in files if not _is_image(file)]
        if not images:
            endings = _few(sorted({file.suffix for file in others}))
            content = f"only files with the extensions {endings}" if others else "nothing"
            raise UserError(
                f"the class folder '{folder / name}' holds no images ({content}); add images "
                f"({', '.join(sorted(EXTENSIONS))}) or remove the folder from train/ and val/"
            )
        samples += [(image, label) for image in images]
        strangers += others
    if strangers:
        warnings.warn(
            f"passed over {len(strangers)} files in '{folder}' that are not images, such as '{strangers[0]}'",
            stacklevel=2,
        )
    return samples


def decode_all(samples: list[Sample], size: int) -> Split:
    images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
    target = images.numpy()

    def decode_into(place: int) -> None:
        target[place] = decode(samples[place][0], size)

    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    try:
        for _ in pool.map(decode_into, range(len(samples))):
            pass
    finally:  # the first bad image ends it, without decoding the rest
        pool.shutdown(cancel_futures=True)
    return Split(images, torch.tensor([label for _, label in samples], dtype=torch.int64))


def decode(path: Path, size: int, short_side: int | None = None) -> np.ndarray:
    """One image file as uint8 [size, size, 3]: RGB, shorter side resized to short_side (None: size), centre crop."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            f"reading images needs Pillow, which cannot be imported ({error}); install it with: pip install pillow"
        ) from error
    try:
        with Image.open(path) as file:
            mode = file.mode
            image = file.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"the image '{path}' is corrupt or not an image ({error}); repair or remove it") from error
    if mode == "F" or mode.startswith("I"):
        raise UserError(
            f"the image '{path}' has more than 8 bits per channel (mode {mode}), which would be cut off at "
            "255; convert it to 8 bits"
        )
    width, height = image.size
    short, target = min(width, height), short_side or size
    image = image.resize((width * target // short, height * target // short), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
