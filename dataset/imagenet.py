"""ImageNet: a name whose data path does not exist yet."""

from __future__ import annotations

from dataset.base import DataOptions
from helper.protocols import DataSet, UserError


def load(options: DataOptions) -> DataSet:
    raise UserError(
        "the ImageNet data path is not built yet: a set that does not fit in memory needs decoding workers or DALI "
        "with RandomResizedCrop to 224, neither of which is here; use --dataset folder --data_folder DIR with "
        "train/ and val/ for a subset that fits in memory"
    )
