"""A method in a Lightning module: python -m examples.lightning_module TRAIN [--method crd] [--max_steps 20]

TRAIN is a folder with a folder of images for each class. The teacher has random weights, so that the example needs no
download.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch.utils.data import DataLoader
from torchvision.models import mobilenet_v3_small, resnet18

import distiller_zoo
from examples.photos import Photos


class Distillation(lightning.LightningModule):
    def __init__(self, task):
        super().__init__()
        self.task = task  # its state is saved and restored with the module's

    def configure_optimizers(self):
        return torch.optim.SGD(self.task.parameters(), lr=0.05, momentum=0.9)

    def training_step(self, batch, _):
        images, targets, index = batch
        out = self.task(images, targets, index=index, epoch=self.current_epoch + 1)
        self.log_dict({"loss": out["loss"], **out["terms"]}, prog_bar=True)
        return out["loss"]

    def on_train_batch_end(self, *_):
        self.task.after_step()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of training images")
    parser.add_argument("--method", default="crd", help="a method, or several joined by + (default: crd)")
    parser.add_argument("--max_steps", type=int, default=20, help="training steps (default: 20)")
    parser.add_argument("--side", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument(
        "--out", default="lightning_student.pth", help="file of the trained student's weights", metavar="FILE"
    )
    args = parser.parse_args(argv)

    photos = Photos(args.train, args.side, augment=True)
    classes, labels = len(photos.classes), torch.tensor(photos.targets)
    student, teacher = mobilenet_v3_small(num_classes=classes), resnet18(num_classes=classes)
    sample = photos[0][0][None]
    task = distiller_zoo.attach(args.method, student, teacher, train_labels=labels, sample=sample, batch_size=32)
    trainer = lightning.Trainer(
        max_steps=args.max_steps,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(Distillation(task), DataLoader(photos, batch_size=32, shuffle=True, drop_last=True))
    print("loss", float(trainer.callback_metrics["loss"]))
    torch.save(task.deployed().state_dict(), args.out)


if __name__ == "__main__":
    main()
