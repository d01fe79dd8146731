"""Image files (what their pixels mean) and folders of them (which files, of which class).

Every reader (folders, ImageNet, TinyImageNet, frames of clips, DALI's search for damaged files) opens an image file
with picture(), which alone decides what the pixels mean:

| the file has | the image becomes |
|---|---|
| grey, a palette, one bit | RGB |
| 16 bits of grey, 32 bits unsigned | 8 bits, the whole range scaled to 0..255; 16-bit colour: the high byte |
| floating point | 0..1 scaled to 0..255; other values are refused |
| transparency | dropped: the colour below it remains, as torchvision and DALI do |
| CMYK, YCbCr, LAB, HSV | RGB by Pillow's conversion; colour profiles and gamma are ignored |
| an EXIF orientation | turned upright, as DALI does |
| several frames | the first |
| more than 178 million pixels | refused, as a decompression bomb |

The log mentions each unusual property once.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.log import log
from core.machine import fresh
from core.packages import needed
from core.protocols import UserError

EXTENSIONS = frozenset(
    f".{name}"
    for group in (
        ("jpg", "jpeg", "jpe", "jfif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
        ("png", "apng", "gif", "webp", "avif", "avifs", "tif", "tiff", "bmp", "dib"),
        ("pbm", "pgm", "pnm", "ppm", "pfm", "qoi", "ico", "cur", "dds", "psd", "pcx"),
        ("tga", "icb", "vda", "vst", "sgi", "bw", "rgb", "rgba", "ras", "xbm", "xpm"),
    )
    for name in group
)
LARGEST_PICTURE = 178_956_970  # pixels; Pillow's limit, and that of a video's frame

FOLDERS = ("imagenet", "ImageNet")
SORTING = (  # for a folder whose images lie outside class folders
    "sort them with: python scripts/sort_imagenet_val.py '{place}' --labels FILE (LOC_val_solution.csv, "
    "val_annotations.txt or the development kit)"
)


class UnreadableError(UserError):
    """A missing or damaged file, which --skip_corrupt skips. Mistakes in the command line are other errors."""

    advice = ""  # what to do, if the message does not say it


class PictureError(UnreadableError):
    """An image that cannot be read, or whose pixels are undefined."""

    advice = "; repair or remove it, or pass --skip_corrupt to leave it out"


@cache
def pillow() -> Any:
    image = needed("PIL.Image", "reading images", "Pillow")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on oddities of headers; what cannot be read is raised
    warnings.filterwarnings("ignore", category=image.DecompressionBombWarning)  # half of the refused size
    return image


Divisor = Callable[[int, int, Sequence[int]], int]


def picture(path: Path, divisor: Divisor | None = None) -> Any:
    """A file as a Pillow image in RGB; see the table above. PictureError if it is damaged or its pixels are
    undefined.

    divisor: called for a JPEG only, with the width and height of the upright image and what libjpeg may divide them by
    (8, 4, 2, rounding up) to decode in less time; returns one of these, or 1."""
    image_class = pillow()
    from PIL import ImageOps  # part of Pillow

    try:
        with image_class.open(path) as file:
            notes = _unusual(file)
            if divisor is not None and file.format in ("JPEG", "MPO"):
                (width, height), turned = file.size, file.getexif().get(0x0112, 1)
                # a part of a pixel at the right would come to lie at the left of an image that is turned upright
                whole = [s for s in (8, 4, 2) if turned not in range(2, 9) or not (width % s or height % s)]
                by = divisor(height, width, whole) if turned in range(5, 9) else divisor(width, height, whole)
                if by > 1:
                    file.draft(None, (width // by, height // by))
            file.load()
            ImageOps.exif_transpose(file, in_place=True)  # after load(), which itself rotates a TIFF
            if file.mode == "RGB":
                image = file  # convert() would copy it
            elif _deep(file.mode):
                image = image_class.fromarray(_in_eight_bits(file)).convert("RGB")
            elif file.mode in ("P", "PA") and "transparency" in file.info:
                image = file.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning
            else:
                image = file.convert("RGB")
    except Exception as error:  # noqa: BLE001 (decoders raise almost any exception on damaged bytes)
        raise PictureError(
            f"the image '{path}' is corrupt or not an image ({str(error) or type(error).__name__})"
        ) from error
    for note in notes:
        _met.setdefault(note, str(path))
    return image


def _deep(mode: str) -> bool:
    return mode == "F" or mode.startswith("I")


def _unusual(file: Any) -> list[str]:
    """The properties of an opened file that the table above lists."""
    notes, mode = [], file.mode
    if _deep(mode):
        notes.append(f"more than 8 bits per channel (mode {mode}), scaled to 8")
    elif "A" in mode.upper().replace("LAB", "") or "transparency" in file.info:
        notes.append("transparency, dropped")
    elif mode not in ("RGB", "L", "P", "1"):
        notes.append(f"mode {mode}, converted to RGB")
    if file.getexif().get(0x0112, 1) not in (0, 1):
        notes.append("an EXIF orientation, turned upright")
    if getattr(file, "is_animated", False):
        notes.append("several frames, only the first is read")
    return notes


def _in_eight_bits(file: Any) -> np.ndarray:
    """uint8 [H, W] of an image with more bits. ValueError if black and white are undefined."""
    values, white = np.asarray(file), 65535.0
    if file.mode == "F":
        white = 1.0
        if not (values >= 0).all() or not (values <= 1).all():  # NaN fails both comparisons
            raise ValueError(f"floating-point pixels from {values.min():g} to {values.max():g}, but 0 to 1 is expected")
    elif file.mode == "I":
        tags = getattr(file, "tag_v2", {})  # TIFF tags: 258 bits per sample, 339 sample format
        if tags.get(339, (1,))[0] == 2:
            raise ValueError("signed integers as pixels, for which black and white are undefined")
        if tags.get(258, (16,))[0] == 32:
            values, white = values.view(np.uint32), 2.0**32 - 1
        elif values.max() > white or values.min() < 0:
            raise ValueError(f"integer pixels from {values.min()} to {values.max()}, more than 16 bits")
    return np.rint(values * (255 / white)).astype(np.uint8)


_met: dict[str, str] = {}  # unusual property since the last call of unusual() -> the first such file
_said: set[str] = set()


def unusual() -> list[tuple[str, str]]:
    """(property, first file) of the unusual images of this process since the last call; a worker passes it to the
    run."""
    found = list(_met.items())
    _met.clear()
    return found


def say_unusual(found: Iterable[tuple[str, str]]) -> None:
    """Log each kind once."""
    for note, path in found:
        if note not in _said:
            _said.add(note)
            log.info("images with %s, such as '%s'", note, path)


def scaled(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 in [0, 1], [B, C, H, W] in channels_last memory; the values of ToTensor."""
    # CUDA multiplies by the reciprocal of a Python scalar, one ulp off the CPU's quotient; a tensor gives the same.
    full = torch.full((1,), 255.0, device=images.device)
    if images.device.type == "cpu":
        return fresh(images.shape).copy_(images).div_(full).permute(0, 3, 1, 2)
    return images.to(torch.float32).div_(full).permute(0, 3, 1, 2)


def class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def visible_below(folder: Path) -> Iterator[Path]:
    """The files of a tree, also behind links, without hidden ones and those in hidden folders."""
    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))


def files_below(folder: Path, flag: str, what: str, fits: Callable[[Path], bool]) -> list[Path]:
    """Those of a tree that fit, in sorted order, without hidden ones. UserError where there is none; flag: what names
    the folder, what: it is sought for."""
    if not folder.is_dir():
        raise UserError(f"{flag} {folder} is not a folder: give a folder of {what}s")
    found = sorted(file for file in visible_below(folder) if fits(file))
    if not found:
        raise UserError(f"{flag} {folder} holds no {what}: give a folder that holds {what}s, with any subfolders")
    return found


def a_few(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def find_root(folder: Path) -> Path:
    candidates = [folder / name for name in FOLDERS] + [folder]
    root = next((c for c in candidates if (c / "train").is_dir()), None)
    if root is None:
        raise UserError(
            f"no ImageNet in '{folder}': looked for train/<class>/<image> in {', '.join(map(str, candidates))}; point "
            "--data_folder at the folder that holds one of them"
        )
    return root


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


def samples_below(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """(file, number of its class) of the images below each class folder, in torchvision's order; other files are left
    out and logged, hidden ones are not."""
    samples: list[tuple[Path, int]] = []
    strangers: list[Path] = []
    for label, name in enumerate(classes):
        files = sorted(visible_below(folder / name), key=lambda file: (str(file.parent), file.name))
        images = [file for file in files if is_image(file)]
        others = [file for file in files if not is_image(file)]
        if not images:
            endings = a_few(sorted({file.suffix for file in others}))
            content = f"only files with the extensions {endings}" if others else "nothing"
            raise UserError(
                f"the class folder '{folder / name}' holds no images ({content}); add images "
                f"({', '.join(sorted(EXTENSIONS))}) or remove the folder from train/ and val/"
            )
        samples += [(image, label) for image in images]
        strangers += others
    if strangers:
        endings = a_few(sorted({file.suffix or "no extension" for file in strangers}))
        log.info(
            "left out %d files in '%s' that are not images by their extension (%s), such as '%s'",
            *(len(strangers), folder, endings, strangers[0]),
        )
    return samples


def listed(folder: Path, subset: str | None) -> tuple[Files, list[str]]:
    """Images below the class folders; subset: a number of classes, or names."""
    chosen = subset_of(class_names(folder), subset, folder)
    if not chosen:
        raise UserError(f"'{folder}' holds no class folders; expected {folder.name}/<class>/<image>")
    samples = samples_below(folder, chosen)
    paths = [str(path.relative_to(folder)) for path, _ in samples]
    return Files(folder, paths, torch.tensor([label for _, label in samples], dtype=torch.int64)), chosen


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
