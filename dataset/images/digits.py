"""Handwritten digits that are part of scikit-learn (1,797 images, 8x8): real images without a download.

Upsampled to 32x32 RGB, split 1,437/360 (stratified, seed 0). Crops but no flips: a mirrored 2 is not a 2.
"""

from __future__ import annotations

import torch

from core.packages import needed
from dataset.base import DataOptions, check_memory
from dataset.images.resident import ResidentData, Split, resident, resize


def load(options: DataOptions) -> ResidentData:
    digits = needed("sklearn.datasets", "the data set digits", "scikit-learn").load_digits()
    size = options.image_size or 32
    check_memory({"train": len(digits.images), "test": 0}, size)
    grey = torch.from_numpy(digits.images)[..., None] * (255 / 16)  # [1797, 8, 8, 1], published as 0..16
    images = resize(grey.round().to(torch.uint8), size).expand(-1, -1, -1, 3)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    split = needed("sklearn.model_selection").train_test_split
    places = split(range(len(labels)), stratify=digits.target, test_size=360, random_state=0)
    train, test = (Split(images, labels).take(torch.tensor(part)) for part in places)
    return resident("digits", list(map(str, range(10))), train, test, options, flips=False)
