"""Cross-Architecture Knowledge Distillation (Liu et al., ACCV 2022, eq. 1-7): a Vision Transformer teaches a CNN.

Shape letters: B samples, C channels of the student's map, g x g = P patches of the teacher, N = P and the tokens before
them, D the teacher's width, H its heads, d = D / H.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option, positive, probability, within
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Phase, Progress, Side, Terms, UserError
from distiller_zoo._multiview import multi_view
from distiller_zoo._stages import pooled_tap, shown
from distiller_zoo.base import Distiller

STRIDE = 16  # stride in px of the student's map
NEIGHBOURS = 4  # side of the neighbourhoods that share a linear layer
HEADS = 16  # published, of the student's attention in the code variant
QK_WEIGHT, VV_WEIGHT, PATCH_WEIGHT = 0.2, 0.05, 0.05  # published, in the code variant
PERIOD = {"paper": 5, "code": 1}  # steps from one update of the discriminator to the next
SMALLEST_MAP = 24  # rows the published discriminator needs: it halves three times and then cuts two


class GroupLinear(nn.Module):
    """The group-wise linear projector: each 4 x 4 neighbourhood of the map has one linear layer.

    [B, C, g, g] -> [B, P, D]. A 14 x 14 map has 16 groups, of which those at the right and at the bottom are cropped.
    """

    def __init__(self, channels: int, width: int, grid: int, dropout: float):
        super().__init__()
        self.grid, self.side = grid, -(-grid // NEIGHBOURS)  # groups along a side
        bound = 1 / math.sqrt(channels)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(self.side**2, width, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.side**2, width).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    def forward(self, f: Tensor) -> Tensor:
        size, side, n = self.grid, self.side, NEIGHBOURS
        missing = side * n - size
        f = F.pad(self.dropout(f), (0, missing, 0, missing)).unflatten(2, (side, n)).unflatten(4, (side, n))
        groups = f.permute(2, 4, 0, 3, 5, 1).flatten(0, 1).flatten(1, 3)  # [groups, B * 16, C]
        out = torch.baddbmm(self.bias[:, None], groups, self.weight.mT)
        out = out.unflatten(1, (-1, n, n)).unflatten(0, (side, side)).permute(2, 0, 3, 1, 4, 5)
        return out.flatten(3, 4).flatten(1, 2)[:, :size, :size].flatten(1, 2)


class CrossAttention(nn.Module):
    """Eq. 1: queries, keys and values by a 3 x 3 convolution each, in the teacher's heads.

    [B, C, g, g] -> [B, 3, H, P, d]. The three are computed as one; a bias would leave the student's own keys unmoved.
    """

    def __init__(self, channels: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_width, 3, padding=1, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        return self.to_qkv(f).flatten(2).unflatten(1, (3, self.heads, -1)).mT


class PublishedAttention(nn.Module):
    """The code's: one linear layer for all three, 16 heads (or as many of them as divide C).

    [B, C, g, g] -> [B, 3, P, C], heads side by side.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.heads = math.gcd(channels, HEADS)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        return self.to_qkv(f.flatten(2).mT).unflatten(2, (3, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: [..., P, d] each -> [..., P, d].

    On a CPU the plain products, and above all their gradients, are faster than torch's fused kernel.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    return (q / math.sqrt(q.shape[-1]) @ k.mT).softmax(-1) @ v


def relations(qkv: Tensor, heads: int, scaled_values: bool = True) -> tuple[Tensor, Tensor]:
    """q k^T / sqrt(d) and v v^T / sqrt(d), both before any softmax and mean over heads; qkv: [B, 3, P, H * d].

    scaled_values: whether the second has its scale, which the published code omits for the teacher. The mean of the
    heads' products is the product of the whole rows divided by H, which avoids H maps.
    """
    q, k, v = qkv.unbind(1)
    scale = math.sqrt(q.shape[2] / heads)
    return q @ k.mT / heads / scale, v @ v.mT / heads / (scale if scaled_values else 1.0)


def token_critic(width: int) -> nn.Sequential:
    """Three fully connected layers on each token: [B, P, D] -> [B, P, 1]. Hidden widths are not published."""
    hidden = max(width // 2, 1)
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, 1),
    )


class MapCritic(nn.Module):
    """The code's discriminator of attention maps: [B, P, P] -> [B, 1, 1, 1], the mean over patches of the map."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in ((8, 16, 2), (16, 32, 2), (32, 64, 1)):
            layers += [nn.Conv2d(c_in, c_out, 4, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(64, 1, 4, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps[:, None]).mean((2, 3), keepdim=True)


def distil_point(student: Side, teacher: Side, grid: int) -> str:
    """The stage nearest to stride 16, or to the teacher's stride if that is finer; of several, the deepest."""
    size = (student.input_shape or student.spec.input_shape)[-1]
    wanted = min(STRIDE, size / grid)

    def off(stage: str) -> float:
        return abs(math.log2(size / student.shapes[stage][-1] / wanted))

    best = min(reversed(student.spec.stages), key=off)
    if off(best) > 1:
        maps = ", ".join(f"{stage} {shown(student.shapes[stage][1:])}" for stage in student.spec.stages)
        raise UserError(
            f"cakd needs a map near stride {wanted:g} ({round(size / wanted)}x{round(size / wanted)} at {size} px, for "
            f"the {grid}x{grid} patches of {teacher.spec.name}), and {student.spec.name} has {maps}; choose another "
            "student, or a teacher with other patches"
        )
    return best


class CAKD(Distiller):
    """L = cls + beta (PCA + GL + generator), with a discriminator trained together with it on its own optimiser.

    paper. PCA, eq. 1-4: ||Attn_T - PCAttn_S||^2 + ||V_T V_T^T - V_S V_S^T||^2 / d, means over all elements, in the
    teacher's heads, over patch tokens alone; in PCAttn_S each entry of Q, K and V is replaced with the teacher's with
    probability `replace`, drawn separately. GL, eq. 5: ||h_T - h'_S||^2, mean, on the tokens behind the final norm.
    Generator, eq. 7: mean log(1 - D(h'_S)), weighed by `adv`; D: three layers on each token, eq. 6, every fifth step.
    The student sees a transformed view (distiller_zoo/_multiview.py) with probability `views`, the teacher
    the image itself.
    The paper gives no dropout rate, no hidden widths, no optimiser of D and no weight: those here are this project's.

    code. As published: ramp (MSE of raw q k^T maps and of v v^T maps, 0.2 and 0.05; of logits; of the class token; of
    the patch tokens, 0.05; and BCE(D(map_S), real)), one view, D on maps at every step at 0.01 of the learning rate.
    ramp = min(max(epoch - 25, 0) / 50, 0.2), counted from 0. The published generator term reaches no student and its
    discriminator sees no real map; here both do. The linear groups follow the grid, which the code has for 14 and 7.

    Projectors and discriminator are not exported.
    """

    name = "cakd"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 1.0
        variant: str = option("paper", "the paper's equations or the published code's", choices=("paper", "code"))
        parts: str = option(
            "gl+pca+mv",
            "terms to train with: gl, gl+pca, gl+pca+mv (the ablation)",
            choices=("gl", "gl+pca", "gl+pca+mv"),
        )
        stage: str = option("auto", "stage map of the student; auto: the one nearest to stride 16", metavar="STAGE")
        replace: float = option(
            0.5, "paper: share of the entries of Q, K, V that are replaced with the teacher's", check=probability
        )
        dropout: float = option(
            0.1, "paper: dropout of the group-wise linear projector", check=within(least=0, most=0.99)
        )
        views: float = option(0.5, "paper: share of the images that the student sees transformed", check=probability)
        adv: float = option(0.1, "paper: weight of the generator term", check=not_negative)
        every: int = option(
            0, "steps from one update of the discriminator to the next; 0: paper 5, code 1", check=not_negative
        )
        critic_lr: float = option(0.01, "learning rate of the discriminator, as a share of the run's", check=positive)
        start: int = option(
            25, "code: last epoch, counted from 0, in which the weight of the terms is 0", check=not_negative
        )
        ramp: int = option(
            50, "code: epochs in which this weight grows from 0 to 1, up to --cakd_most", check=within(least=1)
        )
        most: float = option(0.2, "code: largest value of this weight", check=positive)
        vv_scaled: bool = option(False, "code: give the teacher's value relations the scale of the student's")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        student, teacher = ctx.student, ctx.teacher
        assert teacher is not None
        self.code = cfg.variant == "code"
        self.reads_logits = self.code
        if not (self.code or cfg.cls or cfg.div):
            raise UserError("cakd trains the student's classifier by cross-entropy or the logit KL: raise -c or -d")
        places, width = teacher.shapes["patches"]
        _, heads, tokens, head_width = teacher.shapes["qkv"]
        grid = math.isqrt(places)
        if grid**2 != places or tokens < places:
            raise UserError(
                f"cakd needs a square grid of patch tokens with attention over all of them, but {teacher.spec.name} "
                f"has {places} patch tokens and attention over {tokens}; choose a ViT and square images"
            )
        self.stage = distil_point(student, teacher, grid) if cfg.stage == "auto" else cfg.stage
        channels, *size = student.shapes[self.stage]
        self.fit: nn.Module = nn.Identity()
        if size[0] > grid:
            self.fit = nn.AdaptiveAvgPool2d(grid)
        elif size != [grid, grid]:
            self.fit = nn.Upsample((grid, grid), mode="bilinear", align_corners=False)
        self.heads, self.prefix = heads, tokens - places  # class tokens and similar ones come first
        self.image, self.rng = student.spec.input, ctx.rng

        self.gl_proj = GroupLinear(channels, width, grid, 0.0 if self.code else cfg.dropout)
        if self.code:
            self.pooled = pooled_tap(student.spec, self.name)
            self.cls_proj = nn.Linear(math.prod(student.shapes[self.pooled]), *teacher.shapes["class_token"])
        with_pca, self.adversarial = "pca" in cfg.parts, "mv" in cfg.parts
        self.pca_proj: nn.Module | None = None
        if with_pca:
            self.pca_proj = PublishedAttention(channels) if self.code else CrossAttention(channels, heads, head_width)
        if self.adversarial and self.code and places < SMALLEST_MAP:
            raise UserError(
                f"the discriminator of --cakd_variant code needs attention maps of at least {SMALLEST_MAP}x"
                f"{SMALLEST_MAP}, but {teacher.spec.name} has {grid}x{grid} patches, a map of {places}x{places}; "
                "choose larger images or --cakd_variant paper"
            )
        if self.adversarial:
            self.critic = MapCritic() if self.code else token_critic(width)

    @classmethod
    def needs_classifier(cls, cfg: Config) -> bool:
        return super().needs_classifier(cfg) or cfg.variant == "code"

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        if not student.stages:
            raise UserError(
                f"cakd reads the student's map near stride {STRIDE}, but {student.name} has no stage maps; "
                "choose a CNN as student"
            )
        if cfg.stage != "auto" and cfg.stage not in student.stages:
            raise UserError(
                f"--cakd_stage {cfg.stage} is not a stage of {student.name}; it has {', '.join(student.stages)}"
            )
        wanted = ("qkv", "patches", *(["class_token"] if cfg.variant == "code" else []))
        taps = teacher.taps if teacher is not None else {}
        name = teacher.name if teacher is not None else "no teacher"
        if "qkv" not in taps or "patches" not in taps:
            raise UserError(
                "cakd reads attention that is a softmax of plain products of queries and keys over all patches, but "
                f"{name} has no attention of a supported kind: choose a ViT or Swin, e.g. vit_tiny_cifar, "
                "torchvision:vit_b_16 or timm:deit_small_patch16_224 (docs/cakd.md lists the kinds)"
            )
        if "class_token" in wanted and "class_token" not in taps:
            raise UserError(
                f"--cakd_variant code reads a class token, but {name} has none; use --cakd_variant paper, which needs "
                "none, or another teacher"
            )
        stages = student.stages if cfg.stage == "auto" else (cfg.stage,)
        pooled = (pooled_tap(student, cls.name),) if cfg.variant == "code" else ()
        return Needs((*stages, *pooled), wanted)

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return (f"cakd: variant {cfg.variant}, parts {cfg.parts}",)

    def prepare(self, batch: Batch) -> Batch:
        if self.code or not self.adversarial:
            return batch
        clean = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        view = multi_view(batch.inputs[self.image], self.rng, self.cfg.views)
        return dataclasses.replace(batch.with_inputs({**batch.inputs, self.image: view}), teacher_inputs=clean)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        f = self.fit(s[self.stage])  # [B, C, g, g]
        s, t = {**s, "cakd.patches": self.gl_proj(f)}, dict(t)
        if self.code:
            s["cakd.class_token"] = self.cls_proj(s[self.pooled].flatten(1))
        if self.pca_proj is not None:
            own, theirs = self.pca_proj(f), t["qkv"][..., self.prefix :, :]
            compare = self._compared_as_published if self.code else self._compared
            s["cakd.map"], s["cakd.values"], t["cakd.map"], t["cakd.values"] = compare(own, theirs)
        return s, t

    def _compared(self, own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """PCAttn_S, V_S V_S^T / sqrt(d), and the same two of the teacher; own, theirs: [B, 3, H, P, d]."""
        kept = (torch.rand(own.shape, generator=self.rng, device=own.device) >= self.cfg.replace).to(own.dtype)
        mixed = torch.addcmul(theirs.to(own.dtype) * (1 - kept), own, kept)  # a selection, in half the time of where()
        scale = math.sqrt(own.shape[-1])
        attended = [attention(*qkv.unbind(1)) for qkv in (mixed, theirs)]
        values = [v @ v.mT / scale for v in (own[:, 2], theirs[:, 2])]
        return attended[0], values[0], attended[1], values[1]

    def _compared_as_published(self, own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The raw maps of q k^T and v v^T of both; own: [B, 3, P, C], theirs: [B, 3, H, P, d]."""
        assert isinstance(self.pca_proj, PublishedAttention)
        return (
            *relations(own, self.pca_proj.heads),
            *relations(theirs.transpose(2, 3).flatten(3), self.heads, scaled_values=self.cfg.vv_scaled),
        )

    def _judged(self, features: Features) -> Tensor:
        """The discriminator's input: attention maps in the code, patch tokens in the paper."""
        if self.code:
            return features["cakd.map"]
        return features["cakd.patches"] if "cakd.patches" in features else features["patches"]

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        patches = F.mse_loss(s["cakd.patches"], t["patches"])
        terms: Terms = {"cakd_gl": patches}
        if self.code:
            logits = F.mse_loss(s["logits"], t["logits"])
            terms["cakd_gl"] = logits + F.mse_loss(s["cakd.class_token"], t["class_token"]) + PATCH_WEIGHT * patches
        if self.pca_proj is not None:
            maps = F.mse_loss(s["cakd.map"], t["cakd.map"])
            values = F.mse_loss(s["cakd.values"], t["cakd.values"])
            terms["cakd_pca"] = QK_WEIGHT * maps + VV_WEIGHT * values if self.code else maps + values
        if self.adversarial:
            score = self.critic(self._judged(s))  # attached: this gradient is the student's
            terms["cakd_adv"] = F.softplus(-score).mean() if self.code else -F.softplus(score).mean()
        return terms

    def extra_phases(self) -> tuple[Phase, ...]:
        if not self.adversarial:
            return ()
        every = self.cfg.every or PERIOD[self.cfg.variant]
        params = list(self.critic.parameters())
        return (Phase("cakd.critic", lambda: params, self._critic_terms, every=every, lr_scale=self.cfg.critic_lr),)

    def _critic_terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        """Eq. 6, -log D(real) - log(1 - D(fake)); the code takes half of it. Features arrive detached."""
        real, fake = self.critic(self._judged(t)), self.critic(self._judged(s))
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        return {"cakd_critic": 0.5 * loss if self.code else loss}

    def weights(self, progress: Progress) -> dict[str, float]:
        share = self.cfg.beta
        if self.code:
            share *= min(max(progress.epoch - 1 - self.cfg.start, 0) / self.cfg.ramp, self.cfg.most)
        weights = super().weights(progress) | {"cakd_gl": share, "cakd_critic": 1.0}
        if self.pca_proj is not None:
            weights["cakd_pca"] = share
        if self.adversarial:
            weights["cakd_adv"] = share if self.code else share * self.cfg.adv
        return weights
