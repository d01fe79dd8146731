"""torchvision's ViT for images of any size that its patches divide: forward interpolates the position embedding.

Weights and their names do not change, so a checkpoint fits at any size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.vision_transformer import Encoder, VisionTransformer

from models._transformer import refuse_cut_patches, resized_positions


class AnySizeEncoder(Encoder):
    grid: tuple[int, int]  # of the current image

    def forward(self, input: Tensor) -> Tensor:
        tokens = input + resized_positions(self.pos_embedding, 1, self.grid)
        return self.ln(self.layers(self.dropout(tokens)))


class AnySizeViT(VisionTransformer):
    def forward(self, x: Tensor) -> Tensor:
        refuse_cut_patches(x.shape[2], x.shape[3], self.patch_size)
        maps = self.conv_proj(x)
        self.encoder.grid = (maps.shape[2], maps.shape[3])
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1))
        return self.heads(tokens[:, 0])


def any_size(model: VisionTransformer) -> AnySizeViT:
    """The same network as an instance of the class above, with its modules, parameters and settings."""
    new = AnySizeViT.__new__(AnySizeViT)
    new.__dict__ = model.__dict__
    encoder = AnySizeEncoder.__new__(AnySizeEncoder)
    encoder.__dict__ = model.encoder.__dict__
    new.encoder = encoder
    return new
