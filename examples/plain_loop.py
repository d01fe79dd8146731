"""A method in a plain PyTorch loop: torchvision's ResNet18 teaches its MobileNetV3.

python -m examples.plain_loop TRAIN TEST [--method crd] [--epochs 1]

TRAIN and TEST are folders with a folder of images for each class. The teacher has random weights unless --teacher names
a state dict, so that the example needs no download.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision.models import mobilenet_v3_small, resnet18

import distiller_zoo
from examples.photos import Photos


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of training images")
    parser.add_argument("test", help="folder of test images")
    parser.add_argument("--method", default="crd", help="a method, or several joined by + (default: crd)")
    parser.add_argument("--teacher", help="state dict of a ResNet18 with as many classes (default: random weights)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training images (default: 1)")
    parser.add_argument("--side", type=int, default=64, help="side of the images in pixels (default: 64)")
    args = parser.parse_args(argv)

    photos, tests = Photos(args.train, args.side, augment=True), Photos(args.test, args.side)
    loader = DataLoader(photos, batch_size=32, shuffle=True, drop_last=True)
    labels, classes = torch.tensor(photos.targets), len(photos.classes)
    teacher, student = resnet18(num_classes=classes), mobilenet_v3_small(num_classes=classes)
    if args.teacher:
        teacher.load_state_dict(torch.load(args.teacher, weights_only=True))

    sample = photos[0][0][None]
    task = distiller_zoo.attach(
        args.method, student, teacher, num_classes=classes, train_labels=labels, sample=sample, batch_size=32
    )
    while task is not None:  # some methods train a stage first; most have one
        optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
        task.own_optimizers(lambda params, scale: torch.optim.SGD(params, lr=0.05 * scale))
        for epoch in range(1, args.epochs + 1):
            for images, targets, index in loader:
                out = task(images, targets, index=index, epoch=epoch, epochs=args.epochs, steps_per_epoch=len(loader))
                optimizer.zero_grad()
                out["loss"].backward()
                optimizer.step()
                task.after_step()
            terms = ", ".join(f"{name} {value.item():.4f}" for name, value in out["terms"].items())
            print(f"epoch {epoch}: loss {out['loss'].item():.4f} ({terms})")
        last, task = task, task.next_stage()

    model = last.deployed()
    right = 0
    with torch.no_grad():
        for images, targets, _ in DataLoader(tests, batch_size=64):
            right += int((model(images).argmax(1) == targets).sum())
    print(f"accuracy: {100 * right / len(tests):.2f} %")


if __name__ == "__main__":
    main()
