"""Toy networks, data and methods: one of each family the seams were made for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from core.protocols import Batch, DataSet, ModelSpec, Needs, Phase, Tap
from distiller_zoo._math import kl
from distiller_zoo.base import Distiller
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network

K, N, B = 5, 40, 8
IMG = (3, 16, 16)
LABELS = torch.arange(N) % K


class ToyCNN(nn.Module):
    def __init__(self, width: int, num_classes: int):
        super().__init__()
        c = width
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.stage1 = nn.Sequential(nn.Conv2d(c, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(c, 2 * c, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * c), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(2 * c, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.stage2(self.stage1(self.stem(x)))))


class WithAuxHeads(nn.Module):
    """Backbone plus rotation-joint classifiers on two stages, read through their taps."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.backbone = ToyCNN(width, num_classes)
        self.aux1, self.aux2 = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 4 * num_classes))
            for c in (width, 2 * width)
        )

    def forward(self, x):
        f1 = self.backbone.stage1(self.backbone.stem(x))
        f2 = self.backbone.stage2(f1)
        self.aux1(f1)
        self.aux2(f2)
        return self.backbone.fc(self.backbone.pool(f2))


class ToyViT(nn.Module):
    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)  # softmax ignores a key bias
        self.attend = nn.Softmax(dim=-1)  # a module of its own, so that it can be tapped
        self.tokens = nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        z = self.embed(x).flatten(2).transpose(1, 2)  # [B, P, D]
        a = self.attend(self.q(z) @ self.k(z).transpose(1, 2))  # [B, P, P]
        return self.head(self.tokens(a @ self.v(z)).mean(1))


class ToyVideo(nn.Module):
    """[B, T, 3, H, W] -> logits by averaging per-frame scores."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.frame = ToyCNN(width, num_classes)

    def forward(self, x):
        return self.frame(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class ToySensor(nn.Module):
    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(6, width, 5, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean(-1))


CNN_TAPS = {n: Tap(n) for n in ("stem", "stage1", "stage2")} | {"pooled": Tap("pool", "vector")}
CNN_FEATS = ("stem", "stage1", "stage2", "pooled")
AUX_TAPS = {"aux1": Tap("aux1", "logits"), "aux2": Tap("aux2", "logits")}


def cnn(width: int) -> ModelSpec:
    return ModelSpec(
        f"toy_cnn{width}",
        lambda num_classes: ToyCNN(width, num_classes),
        CNN_TAPS,
        CNN_FEATS,
        "fc",
        input_shape=IMG,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def cnn_aux(width: int) -> ModelSpec:
    return ModelSpec(
        f"toy_aux{width}",
        lambda num_classes: WithAuxHeads(width, num_classes),
        AUX_TAPS,
        (),
        "backbone.fc",
        input_shape=IMG,
    )


VIT = ModelSpec(
    "toy_vit",
    lambda num_classes: ToyViT(12, num_classes),
    {"attn": Tap("attend", "attention"), "tokens": Tap("tokens", "tokens")},
    (),
    "head",
    input_shape=IMG,
)
VIDEO = ModelSpec(
    "toy_video", lambda num_classes: ToyVideo(6, num_classes), {}, (), "frame.fc", input="video", input_shape=(4, *IMG)
)
SENSOR = ModelSpec(
    "toy_sensor", lambda num_classes: ToySensor(8, num_classes), {}, (), "fc", input="sensor", input_shape=(6, 50)
)


@dataclass
class ToyData(DataSet):
    """A data set of noise. kind: image, or paired (video and sensor of one sample)."""

    kind: str = "image"
    name: str = "toy"
    num_classes: int = K
    image: tuple[int, ...] = IMG
    train_labels: torch.Tensor = dataclasses.field(default_factory=lambda: LABELS)

    @property
    def shapes(self):
        return {"image": self.image} if self.kind == "image" else {"video": (4, *IMG), "sensor": (6, 50)}

    def shuffled(self, batching, device):
        raise AssertionError("toys hand out batches")

    def test_loader(self, *args, **kwargs):
        raise AssertionError("no test loader here")

    def batch(self, size: int = B, seed: int = 0) -> Batch:
        g = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self.train_labels), generator=g)[:size]
        inputs = {k: torch.rand(size, *shape, generator=g) for k, shape in self.shapes.items()}
        crop = torch.randint(0, 162, (size,), generator=g) if self.kind == "image" else None
        return Batch(inputs, self.train_labels[index], index, crop=crop)


def network(spec: ModelSpec, num_classes: int = K) -> Network:
    model = spec(num_classes=num_classes)
    return Network(spec, model, Checkpoint(path="toy", state={}, meta={}, best_acc=None, epoch=None, extra={}))


def rotate4(batch: Batch) -> Batch:
    """[B, ...] -> [4B, ...], the four rotations of a sample side by side, view 0 first."""
    x = batch.inputs["image"]
    x = torch.stack([x.rot90(k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
    return batch.with_inputs({**batch.inputs, "image": x}, views=4)


class RotatedTeacher(Distiller):
    """Backbone and auxiliary heads on rotated views; no teacher (the family of hsakd_teacher)."""

    name = "toy_rotated_teacher"
    teacher_mode = "absent"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1.0

    @classmethod
    def needs(cls, cfg, student, teacher):
        return Needs(student=("aux1", "aux2"))

    def prepare(self, batch):
        return rotate4(batch)

    def terms(self, s, t, batch, progress):
        joint = (batch.target[:, None] * 4 + torch.arange(4)).flatten()
        return {self.name: F.cross_entropy(s["aux1"], joint) + F.cross_entropy(s["aux2"], joint)}


class Rotated(Distiller):
    name = "toy_rotated"
    Config = RotatedTeacher.Config

    @classmethod
    def needs(cls, cfg, student, teacher):
        return Needs(student=("aux1", "aux2"), teacher=("aux1", "aux2"))

    def prepare(self, batch):
        return rotate4(batch)

    def terms(self, s, t, batch, progress):
        return {self.name: sum(kl(s[n], t[n], self.cfg.kd_T) for n in ("aux1", "aux2"))}


class TeacherView(Distiller):
    """The teacher alone sees a mirrored image."""

    name = "toy_teacher_view"

    def prepare(self, batch):
        mirrored = {k: x.flip(-1) for k, x in batch.inputs.items()}
        return dataclasses.replace(batch, teacher_inputs=mirrored)


class Critic(Distiller):
    """A CNN imitates a transformer's attention; a critic with its own optimiser judges it."""

    name = "toy_critic"

    @classmethod
    def needs(cls, cfg, student, teacher):
        return Needs(student=("stage2",), teacher=("attn", "tokens"))

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        c, d = ctx.student.shapes["stage2"][0], ctx.teacher.shapes["tokens"][-1]
        self.q, self.v = nn.Conv2d(c, d, 1), nn.Conv2d(c, d, 1)
        self.k = nn.Conv2d(c, d, 1, bias=False)
        self.critic = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3, 2))

    def connect(self, s, t):
        q, k, v = (m(s["stage2"]).flatten(2).transpose(1, 2) for m in (self.q, self.k, self.v))
        return {**s, "critic.attn": (q @ k.transpose(1, 2)).softmax(-1), "critic.tokens": v}, t

    def extra_phases(self):
        return (Phase("critic", lambda: list(self.critic.parameters()), self.critic_terms, lr_scale=0.01),)

    def judge(self, attn, real):
        score = self.critic(attn[:, None])
        return F.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))

    def critic_terms(self, s, t, batch, progress):
        return {"critic": 0.5 * (self.judge(t["attn"], True) + self.judge(s["critic.attn"], False))}

    def terms(self, s, t, batch, progress):
        return {
            "attn": F.mse_loss(s["critic.attn"], t["attn"]),
            "tokens": F.mse_loss(s["critic.tokens"], t["tokens"]),
            "fool": self.judge(s["critic.attn"], True),
        }

    def weights(self, progress):
        return {"cls": 1.0, "div": 1.0, "critic": 1.0, "attn": 0.2, "tokens": 1.0, "fool": 0.1}


class FactorInit(Distiller):
    """First stage of factor transfer: an autoencoder of the teacher's map. The student stays put."""

    name = "toy_factor_init"

    @classmethod
    def needs(cls, cfg, student, teacher):
        return Needs(teacher=("stage2",))

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        c = ctx.teacher.shapes["stage2"][0]
        self.encode, self.decode = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c, 1)

    def unused(self, student):
        return tuple(student.parameters())

    def connect(self, s, t):
        return s, {**t, "factor.rebuilt": self.decode(self.encode(t["stage2"]))}

    def common_terms(self, s, t, batch, weights):
        return {}

    def terms(self, s, t, batch, progress):
        return {self.name: F.mse_loss(t["factor.rebuilt"], t["stage2"])}

    def weights(self, progress):
        return {self.name: 1.0}


class Factor(Distiller):
    name = "toy_factor"
    before = FactorInit
    Config = RotatedTeacher.Config

    @classmethod
    def needs(cls, cfg, student, teacher):
        return Needs(student=("stage2",), teacher=("stage2",))

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        self.encode = ctx.previous.encode
        self.translate = nn.Conv2d(ctx.student.shapes["stage2"][0], self.encode.out_channels, 1)

    def connect(self, s, t):
        return {**s, "factor.s": self.translate(s["stage2"])}, {**t, "factor.t": self.encode(t["stage2"])}

    def terms(self, s, t, batch, progress):
        f_s, f_t = (F.normalize(f.flatten(1)) for f in (s["factor.s"], t["factor.t"]))
        return {self.name: (f_s - f_t).abs().mean()}


class Mutual(Distiller):
    """Deep mutual learning: the 'teacher' is a peer that trains from scratch."""

    name = "toy_mutual"
    teacher_mode = "trained"

    def terms(self, s, t, batch, progress):
        return {
            "peer_cls": F.cross_entropy(t["logits"], batch.target),
            "peer_div": kl(t["logits"], s["logits"].detach(), self.cfg.kd_T),
        }

    def common_terms(self, s, t, batch, weights):
        return super().common_terms(s, {"logits": t["logits"].detach()}, batch, weights)

    def weights(self, progress):
        return {"cls": 1.0, "div": 1.0, "peer_cls": 1.0, "peer_div": 1.0}

    def readouts(self, features):
        return {"student": features["logits"]} | ({"peer": features["peer"]} if "peer" in features else {})
