"""The baseline of bench.py: kd and simkd trained the way the published toolboxes train them.

Float32, contiguous NCHW, a PIL pipeline per image in loader processes, every feature kept by every forward pass, every
term computed whatever its weight, and loss, top-1 and top-5 read by `.item()` before backward. It uses this project's
network classes and none of its step, loader or taps. tests/scripts/test_bench.py holds it against a literal loop.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.protocols import ModelSpec

WEIGHTS = {"kd": (1.0, 1.0, 0.0), "simkd": (0.0, 0.0, 1.0)}  # of cross-entropy, KL and the method's own term
TEMPERATURE = 4.0


class PilImages(Dataset):
    """images: uint8 [N, H, W, C]; labels: [N]. Padding an eighth of the side, crop, flip, tensor, normalisation."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, spec: ModelSpec):
        from torchvision import transforms

        side = images.shape[1]
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(side, padding=side // 8),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def usual_loader(
    images: np.ndarray, labels: np.ndarray, spec: ModelSpec, batch_size: int, workers: int, pin: bool
) -> DataLoader:
    data = PilImages(images, labels, spec)
    return DataLoader(data, batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=pin)


class WithFeatures(nn.Module):
    """forward(x) -> (the published feature list, logits), as networks called with is_feat=True."""

    def __init__(self, model: nn.Module, spec: ModelSpec):
        super().__init__()
        self.model = model
        self.feats: list[Tensor] = []
        for tap in (spec.taps[name] for name in spec.feats):
            inside = tap.side == "input"
            model.get_submodule(tap.module).register_forward_hook(
                lambda module, args, output, inside=inside: self.feats.append(args[0] if inside else output)
            )

    def logits(self, x: Tensor) -> Tensor:
        return self.model(x)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        self.feats = []
        logits = self.logits(x)
        feats, self.feats = self.feats, []
        return feats, logits


class Projector(nn.Sequential):
    """SimKD's transfer layers with factor 2, [B, c_s, H, W] -> [B, c_t, H, W]."""

    def __init__(self, c_s: int, c_t: int):
        hidden = c_t // 2
        super().__init__(
            nn.Conv2d(c_s, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, c_t, 1, bias=False),
            nn.BatchNorm2d(c_t),
            nn.ReLU(inplace=True),
        )


def top_k(logits: Tensor, target: Tensor) -> list[Tensor]:
    """Top-1 and top-5 in percent, each [1]."""
    pred = logits.topk(5, 1, True, True).indices.t()
    correct = pred.eq(target.view(1, -1).expand_as(pred))
    return [correct[:k].reshape(-1).float().sum(0, keepdim=True).mul_(100.0 / len(target)) for k in (1, 5)]


class UsualStep:
    """Call it with normalised images [B, C, H, W] and labels [B]; trains one step and returns the loss.

    The optimiser is what the published call gives under this torch: a loop over parameters on a CPU, foreach on a GPU.
    """

    wrapper, nesterov = WithFeatures, False

    def __init__(
        self,
        method: str,
        student: nn.Module,
        student_spec: ModelSpec,
        teacher: nn.Module,
        teacher_spec: ModelSpec,
        device: torch.device,
        autocast: torch.dtype | None = None,
        lr: float = 0.05,
    ):
        self.method, self.device, self.autocast = method, device, autocast
        self.student = self.wrapper(student, student_spec).to(device).train()
        self.teacher = self.wrapper(teacher, teacher_spec).to(device).eval()
        self.teacher_head = teacher.get_submodule(teacher_spec.head)
        trained = nn.ModuleList([self.student])
        if method == "simkd":
            self.projector = Projector(*(self._width(net) for net in (self.student, self.teacher))).to(device).train()
            trained.append(self.projector)
        self.optimizer = torch.optim.SGD(trained.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=self.nesterov)
        self.sums = dict.fromkeys(("loss", "top1", "top5"), 0.0)

    @torch.no_grad()
    def _width(self, net: WithFeatures) -> int:
        was_training = net.training
        feats, _ = net.eval()(torch.zeros(1, 3, 32, 32, device=self.device))
        net.train(was_training)
        return feats[-2].shape[1]

    def _simkd(self, f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
        """Last maps -> (loss, logits of the reused classifier)."""
        if f_s.shape[2] > f_t.shape[2]:
            f_s = F.adaptive_avg_pool2d(f_s, f_t.shape[2:])
        else:
            f_t = F.adaptive_avg_pool2d(f_t, f_s.shape[2:])
        projected = self.projector(f_s)
        return F.mse_loss(projected, f_t), self.teacher_head(F.adaptive_avg_pool2d(projected, 1).flatten(1))

    def __call__(self, images: Tensor, target: Tensor) -> float:
        images, target = images.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            feat_s, logits = self.student(images)
            with torch.no_grad():
                feat_t, logits_t = self.teacher(images)
            loss_cls = F.cross_entropy(logits, target)
            log_p, q = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(logits_t / TEMPERATURE, 1)
            loss_div = F.kl_div(log_p, q, reduction="sum") * TEMPERATURE**2 / len(target)
            loss_own: Tensor | float = 0.0
            if self.method == "simkd":
                loss_own, logits = self._simkd(feat_s[-2], feat_t[-2])
            cls, div, beta = WEIGHTS[self.method]
            loss = cls * loss_cls + div * loss_div + beta * loss_own

        value = loss.item()
        top1, top5 = top_k(logits, target)
        for name, seen in (("loss", value), ("top1", top1.item()), ("top5", top5.item())):
            self.sums[name] += seen * len(target)

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value
