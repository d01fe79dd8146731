"""The images of the examples: a folder with a folder of images for each class, and the position of every image."""

from __future__ import annotations

from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(ImageFolder):
    """image [3, side, side], class, position in the folder."""

    def __init__(self, root: str, side: int, augment: bool = False):
        crop = (
            [v2.RandomResizedCrop(side, (0.5, 1.0)), v2.RandomHorizontalFlip()]
            if augment
            else [v2.Resize((side, side))]
        )
        super().__init__(root, v2.Compose([v2.PILToTensor(), *crop, v2.ConvertImageDtype(), v2.Normalize(MEAN, STD)]))

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = super().__getitem__(index)
        return image, label, index
