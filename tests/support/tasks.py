"""Contract cases as tasks, for a training loop of one's own."""

import torch

import distiller_zoo
from distiller_zoo.base import Distiller
from tests.support.cases import SMALL, registry_cases
from tests.support.contract import plain_sgd
from tests.support.toys import B

PLACE = {"epoch": 60, "epochs": 100, "steps_per_epoch": 10}  # late enough for every term to count
CASES = registry_cases()


def first_of(name):
    """The first case of a method."""
    return next(case for case in CASES if case.startswith(f"{name}-"))


# methods whose step is one gradient of one loss
PLAIN = [name for name, method in distiller_zoo.method_dict.items() if method.parts is Distiller.parts]
FIRST = [first_of(name) for name in PLAIN]


def attached(case, **settings):
    """The last stage of a contract case as a task, its first networks drawn as make_step() draws them."""
    method, _, student, teacher, data = CASES[case]
    torch.manual_seed(0)
    other = teacher().model if teacher else None
    net = student(num_classes=data.num_classes)
    if method.teacher_mode == "trained":
        other = student(num_classes=data.num_classes)
    if other is not None:
        other.to(memory_format=torch.channels_last)
    task = distiller_zoo.attach(
        method.name,
        net,
        other,
        sample=torch.rand(2, *data.image, generator=torch.Generator().manual_seed(1)),
        train_labels=data.train_labels,
        batch_size=B,
        pixels=True,
        **SMALL.get(method.name, {}),
        **settings,
    )
    while (following := task.next_stage()) is not None:
        task = following
    task.to(memory_format=torch.channels_last)
    if task.method.prepares_teacher:
        batches = [data.batch(seed=i) for i in range(2)]
        task.prepare_teacher([(b.inputs["image"], b.target) for b in batches])
    return task


def train(task, data, steps):
    """Losses of a user's loop."""
    optimizer = plain_sgd(task.parameters(), 1.0)
    task.own_optimizers(plain_sgd)
    losses = []
    for i in range(steps):
        batch = data.batch(seed=i)
        out = task(batch.inputs["image"], batch.target, batch.index, **PLACE)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        task.after_step()
        losses.append(out["loss"].detach())
    return torch.stack(losses)
