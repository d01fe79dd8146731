"""Any image-folder tree: `<root>/train/<class>/**` and `<root>/val/<class>/**` (or test/, or --val_dir), decoded once
into memory.

Every image is converted to RGB (see dataset/images/files.py), its shorter side is resized to `image_size` (32 by
default) and the centre is cropped.
Classes are the sorted names of the folders in train/. Hidden files and folders are ignored.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from core.log import log, progress
from core.machine import usable_cores
from core.protocols import UserError
from dataset.base import DataOptions, check_memory
from dataset.images.files import (
    PictureError,
    a_few,
    class_names,
    is_image,
    picture,
    pillow,
    samples_below,
    say_unusual,
    unusual,
)
from dataset.images.resident import ResidentData, Split, resident

Sample = tuple[Path, int]  # file, class number


def load(options: DataOptions) -> ResidentData:
    """Decode the tree at options.root. A UserError names the path and what to do; val/ may be absent if a slice of
    train is held out (val_fraction)."""
    root, size = options.root, options.image_size or 32
    if not root.is_dir():
        raise UserError(
            f"the data folder '{root}' does not exist; point --data_folder at a folder with train/ and val/"
        )
    if not (root / "train").is_dir():
        raise UserError(
            f"'{root}' has no folder train/; point --data_folder at a folder with train/<class>/<image> and "
            "val/<class>/<image>"
        )
    classes = class_names(root / "train")
    if not classes:
        raise UserError(f"'{root / 'train'}' holds no class folders; expected train/<class>/<image>")
    if len(classes) < 2:
        raise UserError(f"'{root / 'train'}' holds one class folder, {classes[0]}; a classifier needs at least two")
    found = {"train": samples_below(root / "train", classes)}
    if not options.val_fraction:
        found["test"] = samples_below(matching_classes(root, classes, options.val_dir), classes)
    check_memory({part: len(samples) for part, samples in found.items()}, size)
    splits = {part: decode_all(samples, size, options.stream.skip_corrupt) for part, samples in found.items()}
    return resident("folder", classes, splits["train"], splits.get("test"), options, flips=True)


HELD_OUT = ("val", "test", "valid", "validation", "dev")  # folders next to train/; the first two are read by themselves


def matching_classes(
    root: Path, classes: list[str], chosen: str | None, advice: str = "move each to '{folder}/<class>/', as in train/"
) -> Path:
    """The folder that is evaluated on, val/ or test/ unless chosen, with the classes of train/. advice: about images
    outside class folders. Folders like it that are not read are named."""
    there = [name for name in HELD_OUT if (root / name).is_dir()]
    name = chosen or next((name for name in there if name in HELD_OUT[:2]), None)
    if name is None or not (root / name).is_dir():
        what = f"no folder {name}/ (--val_dir)" if name else "neither val/ nor test/"
        instead = f"choose --val_dir {there[0]}, " if there else ""
        raise UserError(
            f"'{root}' has {what}; {instead}add val/<class>/<image> or hold out a slice of train/ with --val_fraction"
        )
    folder = root / name
    if unread := [other for other in there if other != name]:
        log.info(
            "evaluated on %s/, which also chooses the best epoch; not read: %s (--val_dir %s evaluates on it)",
            *(name, ", ".join(f"{other}/" for other in unread), unread[0]),
        )
    names = class_names(folder)
    if names == classes:
        return folder
    places = [folder, *(folder / name for name in names if len(names) == 1)]  # TinyImageNet: val/images/*.JPEG
    for place in places:
        if place.name not in classes and any(is_image(entry) for entry in place.iterdir()):
            way_out = advice.format(folder=folder, place=place)
            raise UserError(f"the images in '{place}' are not sorted into class folders; {way_out}")
    differences = (
        ("only in train/", set(classes) - set(names)),
        (f"only in {folder.name}/", set(names) - set(classes)),
    )
    raise UserError(
        f"'{root}': train/ ({len(classes)}) and {folder.name}/ ({len(names)}) hold different classes, "
        + "; ".join(f"{where}: {a_few(sorted(which))}" for where, which in differences if which)
        + "; give both the same class folders"
    )


def decode_all(samples: list[Sample], size: int, skip: bool = False) -> Split:
    """skip: leave out and count unreadable images instead of raising a UserError (--skip_corrupt)."""
    images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
    target = images.numpy()

    def decode_into(place: int) -> str:
        """Why the image could not be read; "" if it was read."""
        try:
            target[place] = decode(samples[place][0], size)
        except PictureError as error:
            if not skip:
                raise UserError(f"{error}{error.advice}") from error
            return str(error)
        return ""

    pool = ThreadPoolExecutor(max_workers=min(16, usable_cores()))
    try:
        decoded = pool.map(decode_into, range(len(samples)))
        reasons = list(progress(decoded, "decoding images", len(samples)))
    finally:  # the first unreadable image ends decoding
        pool.shutdown(cancel_futures=True)
    say_unusual(unusual())
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    whole = Split(images, labels)
    if not any(reasons):
        return whole
    kept = torch.tensor([not reason for reason in reasons])
    log.info("left out %d images: %s", len(kept) - int(kept.sum()), next(reason for reason in reasons if reason))
    if lost := set(labels.tolist()) - set(labels[kept].tolist()):
        name = next(path for path, label in samples if label in lost).parent
        raise UserError(f"no image of the class '{name}' can be read; repair them or remove the class")
    return whole.take(kept.nonzero().flatten())


def decode(path: Path, size: int, short_side: int | None = None) -> np.ndarray:
    """One image file as uint8 [size, size, 3]: RGB, shorter side resized to short_side (None: size), centre crop."""
    image = picture(path)
    width, height = image.size
    short, target = min(width, height), short_side or size
    image = image.resize((width * target // short, height * target // short), pillow().Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
