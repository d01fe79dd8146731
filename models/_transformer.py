"""Functions for Tap.read that read a transformer's tokens, for any implementation that keeps tokens as [B, N, D].

Shape letters: B samples, N tokens, D width, H heads, d = D / H, P patch tokens in a grid of g x g.
Class tokens and similar ones come before the patch tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import UserError


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """[B, N, 3 * D] -> [B, 3, H, N, d], a view."""
    return qkv.unflatten(2, (3, heads, -1)).permute(0, 2, 3, 1, 4)


def read_qkv(heads: int, module: nn.Module, tokens: Tensor) -> Tensor:
    """From the output of one linear layer for queries, keys and values: [B, N, 3 * D] -> [B, 3, H, N, d]."""
    return split_heads(tokens, heads)


def read_qkv_of_mha(module: Any, tokens: Tensor) -> Tensor:
    """From the input of an nn.MultiheadAttention (batch first): projected again, as the fused kernel returns none."""
    return split_heads(F.linear(tokens, module.in_proj_weight, module.in_proj_bias), module.num_heads)


def read_qkv_of_window(module: Any, tokens: Tensor) -> Tensor:
    """From the input [B, g, g, D] of a torchvision ShiftedWindowAttention whose one window is the whole map.

    UserError at other image sizes, where the attention covers parts of the map or a padded map.
    """
    size, window = list(tokens.shape[1:3]), list(module.window_size)
    if size != window:
        raise UserError(
            f"this Swin attends in windows of {window[0]}x{window[1]}, but its last map is {size[0]}x{size[1]} at this "
            f"image size, so no attention covers all of it; choose the --image_size at which the map is {window[0]}x"
            f"{window[1]} (224 for torchvision's swin_t, swin_s and swin_b)"
        )
    return split_heads(F.linear(tokens.flatten(1, 2), module.qkv.weight, module.qkv.bias), module.num_heads)


def read_normed_qkv(module: Any, tokens: Tensor) -> Tensor:
    """From the input of a timm Attention that normalises queries and keys."""
    q, k, v = split_heads(F.linear(tokens, module.qkv.weight, module.qkv.bias), module.num_heads).unbind(1)
    return torch.stack([module.q_norm(q), module.k_norm(k), v], 1)


def read_class_token(module: nn.Module, tokens: Tensor) -> Tensor:
    """[B, N, D] -> [B, D]."""
    return tokens[:, 0]


def read_patches(prefix: int, module: nn.Module, tokens: Tensor) -> Tensor:
    """[B, prefix + P, D] -> [B, P, D]."""
    return tokens[:, prefix:]


def read_grid(module: nn.Module, tokens: Tensor) -> Tensor:
    """[B, g, g, D] -> [B, P, D]."""
    return tokens.flatten(1, 2)


def read_channels_last(module: nn.Module, maps: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W], a view, whose memory is channels_last."""
    return maps.permute(0, 3, 1, 2)


def read_map(prefix: int, module: nn.Module, tokens: Tensor) -> Tensor:
    """[B, prefix + P, D] -> [B, D, g, g], channels_last; the image was square."""
    patches = tokens[:, prefix:]
    side = math.isqrt(patches.shape[1])
    return patches.unflatten(1, (side, side)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def refuse_cut_patches(height: int, width: int, patch: int) -> None:
    """UserError if patches do not divide an image."""
    if height % patch or width % patch:
        raise UserError(
            f"a transformer that cuts images into patches of {patch} px cannot read {height}x{width}: choose an "
            f"--image_size that is a multiple of {patch}"
        )


def resized_positions(positions: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding [1, prefix + P, D] of a square grid (bicubic); the prefix is kept."""
    side = math.isqrt(positions.shape[1] - prefix)
    if (side, side) == grid:
        return positions
    square = positions[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    moved = F.interpolate(square.float(), grid, mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :prefix], moved.flatten(2).transpose(1, 2)], 1)
