"""Trees of image files: which files, of which class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.protocols import UserError
from dataset.images.folder import class_names, images_below

FOLDERS = ("imagenet", "ImageNet")


SORTING = "python scripts/sort_imagenet_val.py"


def find_root(folder: Path) -> Path:
    candidates = [folder / name for name in FOLDERS] + [folder]
    root = next((c for c in candidates if (c / "train").is_dir()), None)
    if root is None:
        raise UserError(
            f"no ImageNet in '{folder}': looked for train/<class>/<image> in {', '.join(map(str, candidates))}; point "
            "--data_folder at the folder that holds one of them"
        )
    return root


def flat_val(folder: Path, place: Path) -> str:
    return (
        f"the images in '{place}' are not sorted into class folders; sort them with: {SORTING} '{place}' --labels FILE "
        "(LOC_val_solution.csv, val_annotations.txt or the development kit)"
    )


@dataclass(frozen=True)
class Files:
    """A split: paths below `root`, and labels [N] int64."""

    root: Path
    paths: Sequence[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: Tensor) -> Files:
        return Files(self.root, [self.paths[i] for i in positions.tolist()], self.labels[positions])

    @property
    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 of names and labels; the pixels are not read."""
        digest = hashlib.sha256("\n".join(self.paths).encode(errors="surrogateescape"))
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()[:16]


def listed(folder: Path, subset: str | None) -> tuple[Files, list[str]]:
    """Images below the class folders, through torchvision's ImageFolder; subset: a number of classes, or names."""
    from torchvision.datasets import ImageFolder

    chosen = subset_of(class_names(folder), subset, folder)

    class Chosen(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            return chosen, {name: i for i, name in enumerate(chosen)}

    if not chosen:
        raise UserError(f"'{folder}' holds no class folders; expected {folder.name}/<class>/<image>")
    try:
        found = Chosen(str(folder), is_valid_file=images_below)
    except FileNotFoundError as error:  # a class without images
        raise UserError(f"'{folder}': {error}") from error
    paths = [str(Path(path).relative_to(folder)) for path, _ in found.samples]
    return Files(folder, paths, torch.tensor(found.targets, dtype=torch.int64)), chosen


def subset_of(names: Sequence[str], subset: str | None, folder: Path) -> list[str]:
    """'10' takes the first ten names, 'a,b' those; UserError where they do not exist."""
    if subset is None:
        return list(names)
    if subset.isdecimal() and subset not in names:
        if not 1 <= int(subset) <= len(names):
            raise UserError(f"--classes_subset {subset}: '{folder}' has {len(names)} classes")
        return list(names[: int(subset)])
    wanted = [name for name in subset.split(",") if name]
    if unknown := [name for name in wanted if name not in names]:
        raise UserError(f"--classes_subset: '{folder}' has no class {', '.join(unknown[:5])}")
    return sorted(set(wanted))
