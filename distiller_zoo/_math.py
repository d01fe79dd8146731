"""Formulas that several methods share; functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Features, Terms, UserError

STD_EPS = 1e-7  # added to the standard deviation of logits, as published for LSKD


def kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over rows (Hinton et al. 2015, sections 2 and 2.1).

    student_logits, teacher_logits: [B, K]. weights: [B], a factor of each row; None: all rows count equally. Both
    sides are in log space, so there is no 0 * log 0.
    """
    if weights is not None:
        return (kl_rows(student_logits, teacher_logits, temperature) * weights).mean()
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def kl_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """kl() of every row: [B]."""
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1) * temperature**2


def over_views(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean over samples of the weighted sum over views; rows: [B*V], views of one sample adjacent; weights: [V]."""
    return (rows.unflatten(0, (-1, len(weights))) @ weights.to(rows.dtype)).mean()


def standardised(logits: Tensor) -> Tensor:
    """[B, K]: every row minus its mean, divided by its standard deviation (Sun et al., CVPR 2024, algorithm 1).

    The deviation is the unbiased one plus 1e-7, as published.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + STD_EPS)


def squared_error(a: Tensor, b: Tensor, reduction: str = "mean") -> Tensor:
    """F.mse_loss whose gradient for a map in channels_last memory has that order, too; torch returns a contiguous one,
    which the layers before it would have to copy."""
    if a.ndim != 4 or not a.is_contiguous(memory_format=torch.channels_last):
        return F.mse_loss(a, b, reduction=reduction)
    error = F.mse_loss(a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1), reduction=reduction)
    return error.permute(0, 3, 1, 2) if reduction == "none" else error


def rows(f: Tensor) -> Tensor:
    """[B, ...] -> [B, D], for products and distances of samples: a map in the order that it has in memory."""
    in_order = f.ndim == 4 and f.is_contiguous(memory_format=torch.channels_last)
    return (f.permute(0, 2, 3, 1) if in_order else f).flatten(1)


def attention_map(f: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W]: mean over C of the squares, rows of unit length."""
    return F.normalize(torch.linalg.vector_norm(f, dim=1).pow(2).flatten(1) / f.shape[1])


def gram(x: Tensor) -> Tensor:
    """[..., N, D] -> x x^T [..., N, N], whose gradient takes one product instead of two: the left factor is detached,
    and a summand of value 0 carries the rest."""
    products = x.detach() @ x.mT
    return products + (products.mT - products.detach())


def distances(e: Tensor) -> Tensor:
    """[B, D] -> [B, B] Euclidean distances divided by their mean over pairs of different samples; diagonal 0."""
    square = e.pow(2).sum(1)
    others = 1 - torch.eye(len(e), dtype=e.dtype, device=e.device)
    d = (square[:, None] + square - 2 * e @ e.T).clamp_min(1e-12).sqrt() * others
    return d / (d.sum() / max(len(e) * (len(e) - 1), 1) + (len(e) == 1))  # a single sample has no distance


def angles(e: Tensor) -> Tensor:
    """[B, D] -> [B, B, B] cosine at corner i between the directions to j and to k; 0 if two samples coincide."""
    towards = e[None] - e[:, None]  # [B, B, D]
    length = towards.norm(dim=2, keepdim=True)
    # the mask also stops the gradient of coinciding pairs, which the division would multiply by 1e12
    direction = towards / length.clamp_min(1e-12) * (length > 0)
    return direction @ direction.mT


def labels_of(batch: Batch) -> Tensor:
    """[B*V] one label per row of the logits; for mixed images the label of the larger share."""
    labels = batch.target if batch.soft_target is None else batch.soft_target.argmax(1)
    return labels.repeat_interleave(batch.views)


def non_target(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> [B, K - 1], without the column of each row's label. A boolean mask would wait for the device."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= labels[:, None]))


def log_binary(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> [B, 2], log of (p_y, 1 - p_y): the label's logit against the log-sum-exp of all others.

    Taking the logarithm of the probabilities, as published, gives -inf if one of them underflows.
    """
    margin = logits.gather(1, labels[:, None]) - non_target(logits, labels).logsumexp(1, keepdim=True)
    return F.logsigmoid(torch.cat([margin, -margin], 1))


def detached(features: Features) -> Features:
    return {k: v.detach() for k, v in features.items()}


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W] of one size: the taller map is average-pooled to the height and width of the other."""
    if a.shape[2] > b.shape[2]:
        return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
    if a.shape[2] < b.shape[2]:
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


def weighted_sum(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * term; a term without a weight is an error."""
    unweighted = terms.keys() - weights.keys()
    if unweighted:
        raise KeyError(f"terms without a weight: {sorted(unweighted)}; weights exist for {sorted(weights)}")
    if not terms:
        raise UserError("every term of the loss has weight 0: raise one of -c, -d, -b")
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """[B, K] -> [B], in nats, of softmax(logits / temperature)."""
    log_p = F.log_softmax(logits / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1)


def entropy_weights(z_s: Tensor, z_t: Tensor, temperature: float, bound: float) -> Tensor:
    """[B] H_t (1 + H_s / bound) / 2, without gradient; H: entropy() (EA-KD, Su et al., ICCV 2025)."""
    return 0.5 * entropy(z_t, temperature) * (1 + entropy(z_s.detach(), temperature) / bound)


def summed_over_ranks(x: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def warmed_up(epoch: int, epochs: int) -> float:
    """Weight that rises linearly to 1 over the first epochs; 1 for epochs = 0."""
    return min(epoch / epochs, 1.0) if epochs else 1.0


def with_strong_view(batch: Batch, image: str, strong: Callable[[Tensor], Tensor], method: str) -> Batch:
    """Two views per sample: the batch's own view and strong() of it. image: the augmented entry of inputs."""
    if batch.views != 1:
        raise UserError(f"{method} adds a strong view to single views, but the batch holds {batch.views} per sample")
    if batch.teacher_inputs is not None:
        raise UserError(f"{method} also adds a view to the teacher's images: in a combination, put it first")
    inputs = {k: x.repeat_interleave(2, 0) for k, x in batch.inputs.items() if k != image}
    x = batch.inputs[image]
    both = torch.stack([x, strong(x)], 1).flatten(0, 1)  # [B * 2, C, H, W], weak first
    inputs[image] = both.contiguous(memory_format=torch.channels_last)
    return batch.with_inputs(inputs, views=2)
