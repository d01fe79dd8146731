"""TinyImageNet (Stanford CS231n): 64x64 RGB, 200 classes, straight from the unpacked tiny-imagenet-200/.

train/<wnid>/images/*.JPEG; val/images/*.JPEG with the classes in val/val_annotations.txt (tab-separated: file, wnid,
...), or val/<wnid>/ as other toolboxes sort it. The unlabelled test/ is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from core.files import read_text
from core.protocols import UserError
from dataset.base import DataOptions, check_memory
from dataset.images.files import class_names, is_image
from dataset.images.folder import Sample, decode_all
from dataset.images.resident import ResidentData, resident

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIDE = 64


def load(options: DataOptions) -> ResidentData:
    """A UserError names what is missing. options.root: tiny-imagenet-200/ or its parent. val/ is the test set."""
    root = next((f for f in (options.root / "tiny-imagenet-200", options.root) if f.is_dir()), options.root)
    missing = [f"{part}/" for part in ("train", "val") if not (root / part).is_dir()]
    if missing:
        raise UserError(f"TinyImageNet in '{root}' lacks {' and '.join(missing)}; unpack {URL} there")
    classes = class_names(root / "train")
    found = {name: _images(root / "train" / name) for name in classes}
    _refuse_lost(root / "train", found)
    train = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    empty = sorted(set(range(len(classes))) - {label for _, label in train})
    if not classes or empty:
        names = ", ".join(classes[i] for i in empty[:3]) or "any class"
        raise UserError(f"'{root / 'train'}' has no images of {names}; unpack {URL} again")
    test = _validation(root / "val", classes)
    size = options.image_size or SIDE
    check_memory({"train": len(train), "test": len(test)}, size)
    decoded = [decode_all(part, size, options.stream.skip_corrupt) for part in (train, test)]
    return resident("tinyimagenet", classes, decoded[0], decoded[1], options, flips=True)


def _images(folder: Path) -> list[Path]:
    inner = folder / "images"
    place = inner if inner.is_dir() else folder
    images = place.iterdir() if place.is_dir() else ()
    return sorted(f for f in images if is_image(f) and not f.name.startswith("."))


def _refuse_lost(folder: Path, found: Mapping[str, Sequence[Path]]) -> None:
    """UserError if a class's list of boxes names images that are missing; a sample of the data set may have no
    lists."""
    lost = []
    for name, images in found.items():
        boxes, have = folder / name / f"{name}_boxes.txt", {image.name for image in images}
        lines = read_text(boxes, "list of boxes").splitlines() if images and boxes.is_file() else []
        lost += [image for line in lines if (image := line.partition("\t")[0]) and image not in have]
    if lost:
        raise UserError(
            f"'{folder}' lacks {len(lost)} images that its *_boxes.txt name, such as {lost[0]}; unpack {URL} again, or "
            "delete those lists if fewer images are meant"
        )


def _validation(folder: Path, classes: list[str]) -> list[Sample]:
    annotations, number = folder / "val_annotations.txt", {name: i for i, name in enumerate(classes)}
    if not annotations.exists():
        have = set(class_names(folder)) - {"images"}
        found = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
        if not found:
            raise UserError(
                f"'{folder}' has neither val_annotations.txt nor folders of the classes in train/; unpack {URL} again"
            )
        for name in sorted(have ^ set(classes)):
            where = "val/" if name in classes else "train/"
            raise UserError(f"'{folder.parent}': {where} has no class {name}; unpack {URL} again")
        return found
    samples = []
    for place, line in enumerate(read_text(annotations, "list of classes").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number:
            raise UserError(f"line {place} of '{annotations}' names the class {wnid!r}, which train/ does not have")
        sorted_too = folder / wnid / name
        path = next(
            (p for p in (folder / "images" / name, sorted_too, folder / wnid / "images" / name) if p.is_file()), None
        )
        if path is None:
            raise UserError(f"'{annotations}' names {name}, but '{folder / 'images'}' lacks it; unpack {URL} again")
        samples.append((path, number[wnid]))
    named = {path.name for path, _ in samples}
    stray = [path for place in (folder, *(folder / name for name in classes)) for path in _images(place)]
    if unnamed := sorted({path.name for path in stray} - named):
        raise UserError(
            f"'{folder}' has {len(unnamed)} images without a line in '{annotations}', such as {unnamed[0]}; unpack "
            f"{URL} again"
        )
    return samples
