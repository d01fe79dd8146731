"""Vision Transformers (Dosovitskiy et al., ICLR 2021) for small images, with a convolutional stem; timm's key names.

vit_{micro,tiny,small}_cifar cut 32 px into 8 x 8 patches of 4 px, vit_{micro,tiny}_64 cut 64 px into 8 x 8 of 8 px,
vit_micro_224 cuts 224 px into 14 x 14 of 16 px.
Images of another size are cut into patches of the same side, and the position embedding is interpolated.
The classifier reads the class token after the final norm. A transformer has no stages; for methods that read stage
maps, `stem` is the patch embedding and stage1..3 are the patch tokens after each third of the blocks, as maps [B, D, g,
g] without the class token. They have no ReLU, so `_preact` names the same maps.
*_distilled have a distillation token with a classifier of its own (Touvron et al., ICML 2021), `distilled_logits`;
their logits are the mean of `distilled_logits` and `class_logits`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from models._transformer import (
    read_class_token,
    read_map,
    read_patches,
    read_qkv,
    refuse_cut_patches,
    resized_positions,
    split_heads,
)

MLP_RATIO = 4
PREFIX = 1  # the class token; in *_distilled networks a distillation token follows it


class PatchEmbed(nn.Module):
    """[B, 3, H, W] -> [B, D, H / patch, W / patch], by 3 x 3 convolutions of stride 2 and a linear layer.

    Xiao et al., NeurIPS 2021 (section 4): with such a stem a transformer trains in fewer epochs than with one large
    convolution, and is less sensitive to optimiser and learning rate.
    """

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.patch = patch
        halvings = patch.bit_length() - 1
        widths = [3, *(width // 2 ** (halvings - i) for i in range(1, halvings + 1))]
        layers: list[nn.Module] = []
        for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        refuse_cut_patches(x.shape[2], x.shape[3], self.patch)
        return self.proj(self.convs(x))


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.heads).unbind(1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a norm and with a shortcut.

    drop_path: probability with which an image skips one of them in training (Huang et al., ECCV 2016).
    """

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, MLP_RATIO * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(MLP_RATIO * width, width))
        self.drop_path: nn.Module = nn.Identity()
        if drop_path:
            from torchvision.ops import StochasticDepth

            self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]."""

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 100,
        distilled: bool = False,
        drop_path_rate: float = 0.0,
    ):
        """drop_path_rate: of the last block; those before it rise to it evenly from 0."""
        super().__init__()
        grid = size // patch
        self.prefix = PREFIX + distilled
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, PREFIX, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + grid * grid, width))
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.Sequential(*[Block(width, heads, rate) for rate in rates])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self.head_dist = nn.Linear(width, num_classes) if distilled else None
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.dist_token is not None:
            nn.init.trunc_normal_(self.dist_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as the paper's; a fixed 0.02 is too small for these widths
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        grid = (patches.shape[2], patches.shape[3])
        first = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        tokens = torch.cat([*first, patches.flatten(2).transpose(1, 2)], 1)
        tokens = self.norm(self.blocks(tokens + resized_positions(self.pos_embed, self.prefix, grid)))
        logits = self.head(tokens[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(tokens[:, 1])) / 2


def _spec(name: str, size: int, patch: int, width: int, depth: int, heads: int, distilled: bool = False) -> ModelSpec:
    prefix, options = PREFIX + distilled, {"distilled": True} if distilled else {}
    ends = {f"stage{i}": Tap(f"blocks.{depth * i // 3 - 1}", read=partial(read_map, prefix)) for i in (1, 2, 3)}
    two = {"class_logits": Tap("head", "logits"), "distilled_logits": Tap("head_dist", "logits")}
    small = size <= 32
    return ModelSpec(
        name,
        partial(VisionTransformer, size, patch, width, depth, heads, **options),
        {
            "stem": Tap("patch_embed"),
            **ends,
            **{f"{stage}_preact": tap for stage, tap in ends.items()},
            "tokens": Tap("norm", "tokens"),
            "patches": Tap("norm", "tokens", read=partial(read_patches, prefix)),
            "class_token": Tap("norm", "vector", read=read_class_token),
            "qkv": Tap(f"blocks.{depth - 1}.attn.qkv", "attention", read=partial(read_qkv, heads)),
            "pooled": Tap("head", "vector", "input"),
            **(two if distilled else {}),
        },
        feats=("stem", *ends, "pooled"),
        head="head",
        input_shape=(3, size, size),
        mean=CIFAR_MEAN if small else IMAGENET_MEAN,
        std=CIFAR_STD if small else IMAGENET_STD,
        patch=patch,
    )


vit_micro_cifar = _spec("vit_micro_cifar", 32, 4, 96, 4, 3)
vit_tiny_cifar = _spec("vit_tiny_cifar", 32, 4, 192, 9, 3)
vit_small_cifar = _spec("vit_small_cifar", 32, 4, 384, 9, 6)
vit_micro_64 = _spec("vit_micro_64", 64, 8, 96, 4, 3)
vit_tiny_64 = _spec("vit_tiny_64", 64, 8, 192, 9, 3)
vit_micro_224 = _spec("vit_micro_224", 224, 16, 96, 4, 3)
vit_micro_cifar_distilled = _spec("vit_micro_cifar_distilled", 32, 4, 96, 4, 3, distilled=True)
vit_tiny_cifar_distilled = _spec("vit_tiny_cifar_distilled", 32, 4, 192, 9, 3, distilled=True)
