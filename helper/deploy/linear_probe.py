"""Evaluation of frozen features: every image passes the network once, then a linear layer is fitted to the features,
or their nearest neighbours vote.

Shape letters: N images, D width of the feature, K classes.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.log import progress
from core.protocols import Tap, UserError
from core.taps import TappedNet, resized
from dataset.images.files import scaled
from dataset.images.resident import ResidentData
from helper.evaluation.metrics import Meter
from helper.machine.kernels import to_device
from helper.networks.head_probe import ITERATIONS, WEIGHT_DECAY, logistic
from helper.networks.load import Network
from helper.training.schedule import StepDecay

NEIGHBOURS, TEMPERATURE, VOTELESS = 20, 0.07, 1e-4
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # area and aspect of random crops, as in torchvision's RandomResizedCrop


def feature_net(
    network: Network | TappedNet, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> TappedNet:
    """The network with a tap on the input of its classifier. mean, std: of the pixels, if not the network's own."""
    spec = dataclasses.replace(network.spec, taps={**network.spec.taps, "probe": Tap(network.spec.head, side="input")})
    if mean is not None:
        if spec.mean is None:
            raise UserError(f"{spec.name} normalises pixels inside, so --norm published cannot be used: leave it out")
        spec = dataclasses.replace(spec, mean=mean, std=std)
    return TappedNet(network.model, spec, ("probe",))


@torch.no_grad()
def extract(
    net: TappedNet,
    images: Tensor,
    size: int,
    device: torch.device,
    *,
    views: int = 1,
    rng: torch.Generator | None = None,
    autocast: torch.dtype | None = None,
    batch: int = 500,
) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [views * N, D] on the device, view 0 of all images first.

    View 0 is the whole image resized to `size`; other views are random crops, randomly flipped.
    """
    net.eval()
    out = []
    for view in range(views):
        for chunk in progress(images.split(batch), f"features, view {view + 1} of {views}"):
            x = scaled(chunk.to(device))
            x = resized(x, size, "bilinear") if view == 0 else random_crops(x, size, rng)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                feature = net({net.spec.input: x}, ())["probe"]
            out.append((feature.mean((2, 3)) if feature.ndim == 4 else feature.flatten(1)).float())
    return torch.cat(out)


def random_crops(x: Tensor, size: int, rng: torch.Generator | None) -> Tensor:
    """A random box of every image, resized; half of them mirrored. Boxes are clipped to the image."""
    from torchvision.ops import roi_align

    b, _, h, w = x.shape
    share, stretch, top, left, flip = torch.rand(5, b, generator=rng).to(x.device)
    area = (SCALE[0] + share * (SCALE[1] - SCALE[0])) * h * w
    low, high = (torch.tensor(r, device=x.device).log() for r in RATIO)
    ratio = (low + stretch * (high - low)).exp()
    width, height = (area * ratio).sqrt().clamp(max=w), (area / ratio).sqrt().clamp(max=h)
    x0, y0 = left * (w - width), top * (h - height)
    boxes = torch.stack([torch.arange(b, device=x.device), x0, y0, x0 + width, y0 + height], 1)
    crops = roi_align(x.contiguous(), boxes, (size, size), aligned=True)
    return torch.where(flip[:, None, None, None] < 0.5, crops, crops.flip(3))


@dataclass(frozen=True)
class Fitted:
    """Percent on the test set, of the last epoch; best: of the best epoch, chosen on the test set."""

    top1: float
    top5: float
    train_top1: float
    best: float
    best_epoch: int
    epochs: int
    seconds: float


def fit_sgd(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    epochs: int,
    batch_size: int,
    schedule: StepDecay,
    weight_decay: float,
    seed: int,
) -> Fitted:
    """The published solver: SGD with Nesterov momentum 0.9 on mini-batches of features. train, test: ([N, D], [N])."""
    (x, y), started = train, time.monotonic()
    torch.manual_seed(seed)
    layer = nn.Linear(x.shape[1], num_classes).to(x.device)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    rng = torch.Generator().manual_seed(seed)
    best, best_epoch, last = -1.0, 0, (0.0, 0.0)
    for epoch in progress(range(1, epochs + 1), "epochs of the probe"):
        for group in optimizer.param_groups:
            group["lr"] = schedule(epoch)
        for places in torch.randperm(len(x), generator=rng).to(x.device).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(layer(x[places]), y[places]).backward()
            optimizer.step()
        last = accuracy(layer, *test)
        if last[0] > best:
            best, best_epoch = last[0], epoch
    return Fitted(*last, accuracy(layer, x, y)[0], best, best_epoch, epochs, time.monotonic() - started)


def fit_lbfgs(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int, *, iterations: int, weight_decay: float
) -> Fitted:
    """The optimum of logistic()."""
    (x, y), started = train, time.monotonic()
    layer, mean, std, done = logistic(x, y, num_classes, iterations, weight_decay)
    x, x_test = (x - mean) / std, (test[0] - mean) / std
    top = accuracy(layer, x_test, test[1])
    return Fitted(*top, accuracy(layer, x, y)[0], top[0], done, done, time.monotonic() - started)


@torch.no_grad()
def neighbours(train: tuple[Tensor, Tensor], x: Tensor, num_classes: int) -> Tensor:
    """[M, K] probabilities: votes of the NEIGHBOURS most similar training features, weighted by exp(cosine / 0.07), as
    in Wu et al., CVPR 2018, section 3.3. x: [M, D]."""
    features, labels = F.normalize(train[0], dim=1), train[1]
    out = []
    for part in F.normalize(x, dim=1).split(1024):
        similarity, nearest = (part @ features.T).topk(min(NEIGHBOURS, len(features)), dim=1)
        votes = torch.zeros(len(part), num_classes, device=x.device)
        votes.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).softmax(1))
        out.append(votes)
    return torch.cat(out)


@dataclass
class EvalProbe:
    """Evaluates a student that learns without labels, by a probe of its features on a labelled set.

    head: knn or linear. Called with the student, it gives loss, acc and acc_top5 on the set's test images.
    """

    data: ResidentData
    head: str
    size: int
    device: torch.device
    _net: TappedNet | None = None

    def __call__(self, student: TappedNet, autocast: torch.dtype | None) -> dict[str, float]:
        if self._net is None or self._net.model is not student.model:
            self._net = to_device(feature_net(student), self.device)
        parts = ((self.data.train_images, self.data.train_labels), (self.data.test.images, self.data.test.labels))
        train, test = (
            (extract(self._net, images, self.size, self.device, autocast=autocast), labels.to(self.device))
            for images, labels in parts
        )
        if self.head == "linear":
            layer, mean, std, _ = logistic(*train, self.data.num_classes, ITERATIONS, WEIGHT_DECAY)
            with torch.no_grad():
                logits = layer((test[0] - mean) / std)
        else:  # a class without a vote is unlikely, not impossible
            logits = (neighbours(train, test[0], self.data.num_classes) + VOTELESS).log()
        meter = Meter(self.device)
        meter.update(F.cross_entropy(logits, test[1]), logits, test[1], {}, 0)
        return meter.read()[0]


@torch.no_grad()
def accuracy(layer: nn.Linear, x: Tensor, y: Tensor, batch: int = 4096) -> tuple[float, float]:
    """(top-1, top-5) in percent."""
    meter = Meter(x.device)
    for i, (features, target) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
        logits = layer(features)
        meter.update(F.cross_entropy(logits, target), logits, target, {}, i)
    means = meter.read()[0]
    return means["acc"], means["acc_top5"]
