"""Temporal Relation Network, multi-scale (Zhou et al., ECCV 2018, eq. 1 to 3), over any 2-D network: `trn:NAME`.

Module names are those of TRN-pytorch: `base_model`, `new_fc`, `consensus.fc_fusion_scales`. Shape letters: B clips, T
frames of a clip, D values per frame, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Published, Tap, UserError
from models._common import below
from models.bninception import bninception
from models.temporal import NUM_SEGMENTS, clip_spec, frame_taps, frames_of, replace_classifier

SUBSETS = 3  # of each scale below the largest
HIDDEN = 256
DROPOUT, NARROW_DROPOUT = 0.5, 0.2  # for BN-Inception's 1024 values, as published; for networks that may have 64


class MultiScaleRelation(nn.Module):
    """Frame features [B, T, D] -> [B, K]: the sum over scales k = T, ..., 2 of an MLP on ordered subsets of k frames.

    The largest scale has one subset; at every other scale min(3, all) subsets are drawn without replacement in every
    training forward, the same ones for the whole batch. In evaluation they are fixed (evenly spaced in lexicographic
    order), so that a clip always gets the same score; the published code draws them in evaluation too.
    """

    def __init__(self, num_frames: int, width: int, num_classes: int):
        super().__init__()
        if num_frames < 2:
            raise UserError(f"trn relates at least 2 frames, but --num_segments is {num_frames}: raise it")
        self.num_frames = num_frames
        self.subsets = [list(combinations(range(num_frames), k)) for k in range(num_frames, 1, -1)]
        self.fc_fusion_scales = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(k * width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))
            for k in range(num_frames, 1, -1)
        )

    def chosen(self) -> list[list[tuple[int, ...]]]:
        """The frames of every call of every scale's MLP."""
        return [self._choose(subsets) for subsets in self.subsets]

    def _choose(self, subsets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        count = min(SUBSETS, len(subsets))
        if self.training:
            return [subsets[i] for i in torch.randperm(len(subsets))[:count].tolist()]
        return [subsets[i * (len(subsets) - 1) // max(count - 1, 1)] for i in range(count)]

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unbind(1)  # selected one by one, as an index would be copied to the device in every call
        terms = [
            mlp(torch.cat([frames[i] for i in subset], 1))
            for mlp, subsets in zip(self.fc_fusion_scales, self.chosen(), strict=True)
            for subset in subsets
        ]
        return torch.stack(terms).sum(0)


class TRN(nn.Module):
    """Clips [B, T, 3, H, W] -> [B, K]. Dropout replaces the backbone's classifier; `new_fc` computes the
    frame features.

    The initial weights of `new_fc` are PyTorch's. Published, for backbones trained on ImageNet, is a standard deviation
    of 0.001; from scratch that gives the backbone hardly any gradient: six epochs of UTD-MHAD with resnet8 stayed at
    chance level.
    """

    def __init__(self, backbone: nn.Module, width: int, num_classes: int, num_frames: int, feature_dim: int):
        super().__init__()
        self.base_model = backbone
        self.new_fc = nn.Linear(width, feature_dim)
        self.consensus = MultiScaleRelation(num_frames, feature_dim, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        clips_t = clips.shape[:2]
        if clips_t[1] != (wanted := self.consensus.num_frames):
            raise UserError(
                f"this trn relates {wanted} frames, but a clip has {clips_t[1]}: use --num_segments {wanted}"
            )
        return self.consensus(self.new_fc(self.base_model(frames_of(clips))).unflatten(0, clips_t))


def _build(
    backbone: ModelSpec,
    num_classes: int,
    shape: Sequence[int] | None = None,
    feature_dim: int = 300,
    dropout: float = DROPOUT,
    **options: Any,
) -> nn.Module:
    """shape: [T, C, H, W] of a clip. options: for the backbone."""
    num_frames = NUM_SEGMENTS if shape is None else shape[0]
    base = backbone(num_classes=num_classes, **options)
    width = replace_classifier(base, backbone, nn.Dropout(dropout))
    return TRN(base, width, num_classes, num_frames, feature_dim)


def trn_over(backbone: ModelSpec, name: str, **options: Any) -> ModelSpec:
    """The relation network over a 2-D network. Its taps hold the mean of a map over frames, as in VSKD;
    `pooled` and `semantic` are the mean of the frame features."""
    inside, mean_feature = frame_taps("trn", backbone), Tap("new_fc", "vector", per_frame=True)
    taps = {**inside, "frame_pooled": inside["pooled"], "pooled": mean_feature, "semantic": mean_feature}
    published = Published(adapt=partial(below, "base_model.", backbone.published.adapt), fresh=("new_fc",))
    return clip_spec(name, partial(_build, backbone, **options), backbone, taps, "consensus", published)


@cache
def trn_spec(name: str) -> ModelSpec:
    """`trn:NAME` over any network of the registry, such as trn:resnet8 or trn:torchvision:resnet18."""
    from models import model_dict

    return trn_over(model_dict[name], f"trn:{name}", dropout=NARROW_DROPOUT)


trn_bninception = trn_over(bninception, "trn_bninception")
trn_bninception_256 = trn_over(bninception, "trn_bninception_256", feature_dim=256)
