"""A method in a training loop of one's own computes what train_student.py computes, for every method."""

import copy

import pytest
import torch
from torch import nn

import distiller_zoo
from core.protocols import Progress, UserError
from models import model_dict
from tests.support.cases import CLASSES, mostly
from tests.support.contract import make_step, plain_sgd
from tests.support.tasks import CASES, FIRST, attached, train
from tests.support.toys import B


@pytest.mark.parametrize("steps", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", mostly(FIRST))
def test_a_task_computes_what_the_script_computes(case, steps):
    method, cfg, student, teacher, data = CASES[case]
    step = make_step(method, cfg, student, teacher, data, B)
    step.train()
    theirs = [step(data.batch(seed=i), Progress(60, 100, i, 10)).loss for i in range(steps)]
    ours = train(attached(case), data, steps)
    # at this rate a thin network may diverge after some steps: then both do
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=0, equal_nan=True)


IMAGES = torch.rand(B, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(B) % CLASSES


class Small(nn.Module):
    """A network of nobody's zoo, for images of 32 px."""

    def __init__(self, width):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.pool, self.classify = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        return self.classify(self.pool(self.two(self.one(x))).flatten(1))


def pair(seed=0):
    torch.manual_seed(seed)
    return Small(4), Small(8)


def steps_of(task, count, amp=False):
    optimizer = plain_sgd(task.parameters(), 1.0)
    losses = []
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = task(IMAGES, TARGETS, torch.arange(B), epoch=1)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        task.after_step()
        losses.append(out["loss"].detach())
    return torch.stack(losses)


def task_of(method="kd", seed=0, **settings):
    return distiller_zoo.attach(method, *pair(seed), **{"sample": IMAGES[:2], **settings})


CRD = {"train_labels": torch.arange(40) % CLASSES, "nce_k": 8}


def test_a_foreign_network_is_looked_into_and_says_what_was_found(caplog):
    with caplog.at_level("INFO"):
        task = task_of("simkd")
    assert "classifier classify" in caplog.text and "stage2 two" in caplog.text
    assert set(task.student.want) == {"stage2"}
    again = distiller_zoo.attach("fitnet", *pair(), sample=IMAGES[:2], taps={"teacher": {"stage1": "two"}})
    assert again.student.spec.taps["stage1"].module == "one"
    assert steps_of(again, 2).isfinite().all()


def test_maps_before_a_relu_are_named_and_are_no_stages():
    taps = {f"stage{i}_preact": f"{module}.0" for i, module in enumerate(("one", "two"), 1)}
    task = task_of("ofd", taps={"student": taps, "teacher": taps})
    assert task.student.spec.stages == ("stage1", "stage2")
    assert steps_of(task, 2).isfinite().all()


@pytest.mark.parametrize("method, settings", [("kd", {}), ("crd", CRD), ("kd+crd", CRD), ("simkd", {})])
def test_parameters_are_the_students_and_the_methods(method, settings):
    student, teacher = pair()
    task = distiller_zoo.attach(method, student, teacher, sample=IMAGES[:2], **settings)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert not {id(p) for p in task.parameters()} & {id(p) for p in teacher.parameters()}
    steps_of(task, 2)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items()) and not teacher.training
    model = task.deployed()
    assert method == "simkd" or not any(m._forward_hooks for m in model.modules())
    task.eval()
    with torch.no_grad():
        assert torch.equal(model(IMAGES), task(IMAGES, TARGETS, torch.arange(B))["logits"])


@pytest.mark.parametrize("method, settings", [("crd", CRD), ("dml", {}), ("mgd", {})])
def test_the_state_restores_the_task(method, settings):
    first = task_of(method, **settings)
    steps_of(first, 2)
    state = copy.deepcopy(first.state_dict())
    second = task_of(method, seed=1, **settings)
    second.load_state_dict(state)
    if method == "dml":  # its peer is a part of the task; teachers are not
        assert any(key.startswith("trained.peer") for key in state)
    else:
        second._objective.teacher.net.load_state_dict(first._objective.teacher.net.state_dict())
    assert torch.equal(steps_of(first, 2), steps_of(second, 2))


def test_losses_are_float32_under_autocast():
    losses, exact = steps_of(task_of("kd+at"), 2, amp=True), steps_of(task_of("kd+at"), 2)
    assert losses.dtype == torch.float32 and not torch.equal(losses, exact)
    assert torch.allclose(losses, exact, rtol=0.05)


@pytest.mark.slow  # test_kernels.py compiles a step
@pytest.mark.parametrize("method, settings", [("kd", {}), ("crd", CRD)])
def test_a_compiled_task_computes_the_same(method, settings):
    task, plain = task_of(method, **settings), task_of(method, **settings)
    task.compile(backend="eager")
    assert torch.allclose(steps_of(task, 2), steps_of(plain, 2), rtol=1e-5)


def test_micro_batches_add_up():
    whole, parts = task_of("kd"), task_of("kd")
    whole(IMAGES, TARGETS)["loss"].backward()
    for half in (slice(0, B // 2), slice(B // 2, B)):
        (parts(IMAGES[half], TARGETS[half])["loss"] / 2).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_teacher_reads_what_its_transform_makes():
    same = task_of("kd")
    other = task_of("kd", teacher_transform=lambda x: nn.functional.interpolate(x, scale_factor=2) * 3 - 1)
    assert not torch.equal(steps_of(same, 1), steps_of(other, 1))


def test_first_stages_follow_each_other():
    task, stages = task_of("ft"), 1
    steps_of(task, 1)
    while (following := task.next_stage()) is not None:
        task, stages = following, stages + 1
    assert stages == 2 and steps_of(task, 2).isfinite().all()


@pytest.mark.parametrize(
    "method, settings, words",
    [
        ("crd", {}, ("train_labels",)),
        ("semckd", {}, ("batch_size",)),
        ("kd", {"kd_t": 2}, ("no setting 'kd_t'", "kd_T")),
        ("kd", {"num_classes": 7}, ("num_classes is 7", "has 5 outputs")),
        ("kd", {"taps": {"student": {"stage1": "three"}}}, ("'three' of Small does not exist", "one [4, 32, 32]")),
        ("kd", {"taps": {"stage1": "one"}}, ("'student': {tap: module}",)),
        ("kd", {"taps": {"student": {"head": "one"}}}, ("'one' of", "is not its classifier", "classify [5]")),
        ("kd", {"kd_T": "four"}, ("kd: a setting has the wrong type",)),
        ("crd", {"train_labels": [0, 5]}, ("from 0 to 4",)),
        ("kd", {"sample": None}, ("sample= must be a few inputs",)),
        ("vanilla+simkd", {}, ("replaces the classifier",)),
        ("nothing", {}, ("nothing",)),
    ],
)
def test_what_does_not_fit_is_one_sentence(method, settings, words):
    with pytest.raises(UserError) as refused:
        task_of(method, **settings)
    assert all(word in str(refused.value) for word in words), refused.value


def test_other_classes_a_missing_teacher_and_a_missing_index_are_refused():
    student, teacher = pair()
    teacher.classify = nn.Linear(16, 9)
    with pytest.raises(UserError, match="9 classes, but the student has 5"):
        distiller_zoo.attach("kd", student, teacher, sample=IMAGES[:2])
    with pytest.raises(UserError, match="needs a second network"):
        distiller_zoo.attach("kd", student, sample=IMAGES[:2])
    with pytest.raises(UserError, match="pass index="):
        task_of("crd", **CRD)(IMAGES, TARGETS)
    with pytest.raises(UserError, match="student and teacher are one module"):
        distiller_zoo.attach("kd", student, student, sample=IMAGES[:2])
    with pytest.raises(UserError, match="must be an nn.Module, not a str"):
        distiller_zoo.attach("kd", student, "resnet18", sample=IMAGES[:2])
    student.forward = lambda x: {"logits": x}
    with pytest.raises(UserError, match="Small returns a dict"):
        distiller_zoo.attach("kd", student, teacher, sample=IMAGES[:2])
    task = task_of("crd", **CRD)
    assert task.eval()(IMAGES, TARGETS)["loss"].isfinite()  # nothing is stored in evaluation
    with pytest.raises(UserError, match=f"batch_size=64, but this batch has {len(IMAGES)} samples"):
        task_of("semckd", batch_size=64)(IMAGES, TARGETS)
    with pytest.raises(UserError, match="own_optimizers"):
        attached("cakd-resnet8-vit_micro_cifar")(IMAGES, TARGETS)


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
