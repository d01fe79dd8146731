"""What changes batches that lie on the device already: RandAugment, mixed and smoothed labels.

MixUp (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) are torchvision's, for any loader.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from core.option import RESULT, Config, not_negative, option, share
from core.protocols import Batch, Loader
from dataset.images.randaugment import rand_augment
from dataset.order import seed_for, seeded


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


class ChangedLoader(Loader):
    """The batches of `loader`, each changed by changed(). Draws depend on (seed, epoch, step, rank)."""

    def __init__(self, loader: Loader, seed: int, rank: int):
        super().__init__(len(loader))
        self.loader, self.seed, self.rank = loader, seed, rank

    @abstractmethod
    def changed(self, batch: Batch, step: int) -> Batch: ...

    def batches(self, start: int) -> Iterator[Batch]:
        self.loader.set_epoch(self.epoch, start)
        return (self.changed(batch, step) for step, batch in enumerate(self.loader, start))

    def end_epoch(self) -> dict[str, Any]:
        return self.loader.end_epoch()


class AugmentedLoader(ChangedLoader):
    """The batches of `loader` after RandAugment: num_ops operations on every image, each image with its own."""

    def __init__(self, loader: Loader, num_ops: int, magnitude: int, seed: int, rank: int):
        super().__init__(loader, seed, rank)
        self.num_ops, self.magnitude = num_ops, magnitude

    def changed(self, batch: Batch, step: int) -> Batch:
        x = batch.inputs["image"]
        rng = torch.Generator(x.device).manual_seed(seed_for("augment", self.seed, self.epoch, step, self.rank))
        image = rand_augment(x, rng, self.num_ops, self.magnitude).contiguous(memory_format=torch.channels_last)
        return batch.with_inputs({**batch.inputs, "image": image})


class MixedLoader(ChangedLoader):
    """The batches of `loader` with soft targets [B, K]: (1 - smoothing) * label + smoothing / K.

    mixup, cutmix: alpha of the Beta distribution, 0 for none; with both, every batch draws one of them. `target` is
    the label of the first of two mixed images.
    """

    def __init__(self, loader: Loader, num_classes: int, cfg: MixingConfig, seed: int, rank: int):
        super().__init__(loader, seed, rank)
        mixup, cutmix = cfg.mixup, cfg.cutmix
        self.num_classes, self.smoothing = num_classes, cfg.label_smoothing
        self.mixes = []
        if mixup or cutmix:
            from torchvision.transforms import v2

            self.mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
            self.mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def changed(self, batch: Batch, step: int) -> Batch:
        soft = F.one_hot(batch.target, self.num_classes).float()
        if self.mixes and len(batch) > 1:
            with seeded(seed_for("mix", self.seed, self.epoch, step, self.rank)):
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                image, soft = mix(batch.inputs["image"], batch.target)
            image = image.contiguous(memory_format=torch.channels_last)
            batch = batch.with_inputs({**batch.inputs, "image": image})
        soft = soft * (1 - self.smoothing) + self.smoothing / self.num_classes
        return dataclasses.replace(batch, soft_target=soft)
