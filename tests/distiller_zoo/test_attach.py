"""A method in a training loop of one's own computes what train_student.py computes, for every method."""

import pytest
import torch

import distiller_zoo
from core.protocols import Progress, UserError
from distiller_zoo.base import Distiller
from models import model_dict
from tests.support.cases import SMALL, registry_cases
from tests.support.contract import make_step, plain_sgd
from tests.support.toys import B

PLACE = {"epoch": 60, "epochs": 100, "steps_per_epoch": 10}  # late enough for every term to count
CASES = registry_cases()
PLAIN = [name for name, method in distiller_zoo.method_dict.items() if method.parts is Distiller.parts]
FIRST = [next(case for case in CASES if case.startswith(f"{name}-")) for name in PLAIN]


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


@pytest.mark.parametrize("steps", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", FIRST)
def test_a_task_computes_what_the_script_computes(case, steps):
    method, cfg, student, teacher, data = CASES[case]
    step = make_step(method, cfg, student, teacher, data, B)
    step.train()
    theirs = [step(data.batch(seed=i), Progress(60, 100, i, 10)).loss for i in range(steps)]
    assert torch.equal(train(attached(case), data, steps), torch.stack(theirs))


def test_a_method_that_learns_from_the_teacher_first_says_so():
    images, nets = torch.rand(4, 3, 32, 32), [model_dict["resnet8"](num_classes=5) for _ in range(2)]
    task = distiller_zoo.attach("dkd+kdpp", *nets, sample=images[:2])
    with pytest.raises(UserError, match="reads the teacher's features .* call task.prepare_teacher"):
        task(images, torch.arange(4))
    task.prepare_teacher([(images, torch.arange(4))])
    assert task(images, torch.arange(4))["loss"].isfinite()
    again = distiller_zoo.attach("dkd+kdpp", *nets, sample=images[:2])
    again.load_state_dict(task.state_dict())  # and remembers it
    assert torch.equal(again(images, torch.arange(4))["loss"], task(images, torch.arange(4))["loss"])
