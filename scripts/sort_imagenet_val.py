#!/usr/bin/env python3
"""Sort a flat validation folder into class folders: python scripts/sort_imagenet_val.py VAL_FOLDER --labels FILE

FILE gives the class of every image: LOC_val_solution.csv (Kaggle's ImageNet), val_annotations.txt (TinyImageNet),
any text with a file name and a class folder's name per line, or ILSVRC2012_devkit_t12.tar.gz. Images are moved within
the folder; sorted images stay, so that an interrupted call can be repeated.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.protocols import UserError
from dataset.images.files import is_image
from helper.machine.program import ScriptParser, run_script


def labels_from_text(path: Path) -> dict[str, str]:
    """File name without ending -> class."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file ({error})") from error
    if lines and lines[0].startswith("ImageId,"):
        kaggle = [line.partition(",") for line in lines[1:] if line.strip()]
        pairs = [[name, rest.strip().partition(" ")[0]] for name, _, rest in kaggle]  # behind the class, boxes
    else:
        pairs = [_name_and_class(line) for line in lines if line.strip()]
    if not pairs or not all(image and label for image, label in pairs):
        raise UserError(f"{path} must have a file name and a class on every line")
    if bad := [label for _, label in pairs if "/" in label or "\\" in label or label in (".", "..")]:
        raise UserError(f"{path} names the class '{bad[0]}', which cannot be the name of a folder")
    return {Path(image).stem: label for image, label in pairs}


def _name_and_class(line: str) -> list[str]:
    """Of a line: fields end at tabs or commas if there are any; else the class is the rest, numbers of a box aside."""
    separator = next((c for c in "\t," if c in line), None)
    if separator:
        return [field.strip().strip('"') for field in line.split(separator)[:2]]
    image, *words = line.split()
    while len(words) > 1 and words[-1].isdecimal():
        words.pop()
    return [image, " ".join(words)]


def labels_from_devkit(path: Path) -> dict[str, str]:
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        try:
            parse_devkit_archive(folder, path.name)
        except RuntimeError as error:
            raise UserError(f"{path} is not the published ILSVRC2012_devkit_t12.tar.gz: download it again") from error
        _, wnids = load_meta_file(folder)
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(wnids, 1)}


def sort(folder: Path, labels: dict[str, str]) -> int:
    """Move every image of the flat folder below its class; how many. UserError where one has no label."""
    images = [p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p)]
    if unknown := [p.name for p in images if p.stem not in labels]:
        raise UserError(f"{len(unknown)} images of {folder} have no label, such as {unknown[0]}: nothing was moved")
    for image in images:
        target = folder / labels[image.stem]
        target.mkdir(exist_ok=True)
        image.rename(target / image.name)
    return len(images)


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the images")
    parser.add_argument("--labels", type=Path, required=True, help="class of every image", metavar="FILE")
    args = parser.parse_args(argv)
    if not args.folder.is_dir() or not args.labels.is_file():
        raise UserError(f"{args.folder} must be a folder and {args.labels} a file")
    read = labels_from_devkit if ".tar" in args.labels.suffixes else labels_from_text
    print(f"{sort(args.folder, read(args.labels))} images sorted in {args.folder}")


if __name__ == "__main__":
    run_script(main)
