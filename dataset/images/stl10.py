"""STL-10 (Coates et al., AISTATS 2011): 96x96 RGB, 10 classes, the labelled 5,000 training and 8,000 test images.

Read from the official binary files: *_X.bin holds uint8 [N, 3, 96, 96], every channel column by column; *_y.bin uint8
labels 1 to 10; class_names.txt one name per line. The unlabelled images are not used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from core.files import read_text
from core.protocols import UserError
from dataset.base import DataOptions
from dataset.images.resident import ResidentData, Split, resident, resized

URL = "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
CLASSES, SIDE = 10, 96
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")


def load(options: DataOptions) -> ResidentData:
    """A UserError names the missing or damaged file. options.root: stl10_binary/ or its parent."""
    root = next((f for f in (options.root / "stl10_binary", options.root) if f.is_dir()), options.root)
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"STL-10 in '{root}' lacks {', '.join(missing)}; unpack {URL.rpartition('/')[2]} from {URL} there"
        )
    classes = read_text(root / FILES[4], "list of classes").split()
    if len(classes) != CLASSES:
        raise UserError(f"'{root / FILES[4]}' names {len(classes)} classes instead of {CLASSES}; unpack STL-10 again")
    train, test = resized(_part(root, "train"), _part(root, "test"), options.image_size or SIDE)
    return resident("stl10", classes, train, test, options, flips=True)


def _part(root: Path, part: str) -> Split:
    pixels, labels = (np.fromfile(root / f"{part}_{kind}.bin", np.uint8) for kind in "Xy")
    per_image = 3 * SIDE * SIDE
    if not len(labels) or len(pixels) != per_image * len(labels):
        raise UserError(
            f"'{root / f'{part}_X.bin'}' has {len(pixels)} bytes, but the {len(labels)} labels of {part}_y.bin need "
            f"{per_image * len(labels)}: one of them is truncated; unpack STL-10 again"
        )
    if labels.min() < 1 or labels.max() > CLASSES:
        raise UserError(
            f"'{root / f'{part}_y.bin'}' has labels from {labels.min()} to {labels.max()} instead of 1 to {CLASSES}"
        )
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)  # [N, channel, column, row] -> [N, H, W, C]
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64) - 1))
