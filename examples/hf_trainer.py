"""A method in Hugging Face's Trainer: python -m examples.hf_trainer TRAIN TEST [--method crd] [--max_steps 20]

TRAIN and TEST are folders with a folder of images for each class. The teacher has random weights, so that the example
needs no download.
"""

from __future__ import annotations

import argparse

import torch
from torchvision.models import mobilenet_v3_small, resnet18
from transformers import Trainer, TrainerCallback, TrainingArguments

import distiller_zoo
from examples.photos import Photos


class DistillationTrainer(Trainer):
    """The model is a task: its forward takes images, targets, index and gives a dict with the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        out = model(**inputs, epoch=int(self.state.epoch or 0) + 1)
        return (out["loss"], {"logits": out["logits"]}) if return_outputs else out["loss"]


class AfterStep(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **_):
        getattr(model, "module", model).after_step()


def collated(samples):
    images, targets, index = zip(*samples, strict=True)
    return {"images": torch.stack(images), "targets": torch.tensor(targets), "index": torch.tensor(index)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of training images")
    parser.add_argument("test", help="folder of test images")
    parser.add_argument("--method", default="crd", help="a method, or several joined by + (default: crd)")
    parser.add_argument("--max_steps", type=int, default=20, help="training steps (default: 20)")
    parser.add_argument("--side", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument(
        "--out", default="hf_student", help="folder of the Trainer, and of the student's weights", metavar="FOLDER"
    )
    args = parser.parse_args(argv)

    photos, tests = Photos(args.train, args.side, augment=True), Photos(args.test, args.side)
    classes, labels = len(photos.classes), torch.tensor(photos.targets)
    student, teacher = mobilenet_v3_small(num_classes=classes), resnet18(num_classes=classes)
    sample = photos[0][0][None]
    task = distiller_zoo.attach(args.method, student, teacher, train_labels=labels, sample=sample, batch_size=32)
    trainer = DistillationTrainer(
        task,
        TrainingArguments(
            args.out,
            max_steps=args.max_steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            label_names=["targets"],
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=photos,
        eval_dataset=tests,
        data_collator=collated,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        callbacks=[AfterStep()],
    )
    trainer.train()
    print("accuracy", trainer.evaluate()["eval_accuracy"])
    torch.save(task.deployed().state_dict(), f"{args.out}/student.pth")


if __name__ == "__main__":
    main()
