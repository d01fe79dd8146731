"""Mixed and smoothed labels: MixUp (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), label smoothing.

torchvision's transforms on whole batches on the device, for any loader.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from core.option import RESULT, Config, not_negative, option, share
from core.protocols import Batch, Loader
from dataset.base import seeded


@dataclass(frozen=True)
class MixingConfig(Config):
    heading = "regularisation"

    label_smoothing: float = option(0.0, "share of a label spread over all classes", check=share, role=RESULT)
    mixup: float = option(0.0, "alpha of MixUp", check=not_negative, role=RESULT)
    cutmix: float = option(
        0.0, "alpha of CutMix; with --mixup, each batch draws one of them", check=not_negative, role=RESULT
    )

    def __bool__(self) -> bool:
        return bool(self.label_smoothing or self.mixup or self.cutmix)


class MixedLoader(Loader):
    """The batches of `loader` with soft targets [B, K]: (1 - smoothing) * label + smoothing / K.

    mixup, cutmix: alpha of the Beta distribution, 0 for none; with both, every batch draws one of them. `target` is
    the label of the first of two mixed images. Draws depend on (seed, epoch, step, rank).
    """

    def __init__(self, loader: Loader, num_classes: int, cfg: MixingConfig, seed: int, rank: int):
        mixup, cutmix = cfg.mixup, cfg.cutmix
        self.loader, self.num_classes, self.smoothing = loader, num_classes, cfg.label_smoothing
        self.seed, self.rank, self.epoch, self.first = seed, rank, 1, 0
        self.mixes = []
        if mixup or cutmix:
            from torchvision.transforms import v2

            self.mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
            self.mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        first, self.first = self.first, 0
        for step, batch in enumerate(self.loader, first):
            yield self.mixed(batch, step)

    def mixed(self, batch: Batch, step: int) -> Batch:
        soft = F.one_hot(batch.target, self.num_classes).float()
        if self.mixes and len(batch) > 1:
            text = f"mix {self.seed} {self.epoch} {step} {self.rank}"
            digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
            with seeded(digest):
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                image, soft = mix(batch.inputs["image"], batch.target)
            image = image.contiguous(memory_format=torch.channels_last)
            batch = batch.with_inputs({**batch.inputs, "image": image})
        soft = soft * (1 - self.smoothing) + self.smoothing / self.num_classes
        return dataclasses.replace(batch, soft_target=soft)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        self.epoch, self.first = epoch, start_step
        self.loader.set_epoch(epoch, start_step)

    def end_epoch(self) -> dict[str, Any]:
        return self.loader.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state)
