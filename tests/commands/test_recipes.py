"""What torchvision's reference recipes need: schedules, optimisers, averages, mixed labels. Against torch's own."""

import copy
import dataclasses
import json
import signal
import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.protocols import UserError
from dataset.mixing import AugmentedLoader, MixedLoader, MixingConfig
from distiller_zoo import method_dict
from helper.networks.load import load_network
from helper.options.parse import parse
from helper.training import optim, stages
from helper.training.ema import EmaConfig
from helper.training.schedule import ScheduleConfig, make_schedule
from helper.training.step import StepSetup
from models import model_dict
from tests.dataset.test_dataset import loader as resident_loader
from tests.dataset.test_dataset import make
from tests.support.contract import PROGRESS
from tests.support.run_folders import TIMING, rows_of
from tests.support.toys import ToyData, cnn, network


def by_torch(make_scheduler, epochs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_are_those_of_torch():
    def ours(kind, epochs, decay="", warmup=0, lowest=0.0):
        schedule = make_schedule(
            ScheduleConfig(
                epochs=epochs,
                learning_rate=0.4,
                lr_decay_epochs=decay,
                schedule=kind,
                lr_min=lowest,
                warmup_epochs=warmup,
            )
        )
        return [schedule(e) for e in range(1, epochs + 1)]

    cosine = by_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 10, 0.001), 10)
    assert ours("cosine", 10, lowest=0.001) == pytest.approx(cosine)

    def warmed(o):
        parts = [lr_scheduler.LinearLR(o, 0.01, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)]
        return lr_scheduler.SequentialLR(o, parts, [3])

    assert ours("cosine", 12, warmup=3) == pytest.approx(by_torch(warmed, 12))
    step = by_torch(lambda o: lr_scheduler.MultiStepLR(o, [5, 8], 0.1), 10)
    assert ours("step", 10, "5,8") == pytest.approx(step)
    assert ours("step", 10, "5,8", warmup=3)[3:] == pytest.approx(step[3:])
    for wrong in ({"warmup": 10}, {"warmup": -1}, {"lowest": 1.0}):
        with pytest.raises(UserError, match="--warmup_epochs|--lr_min"):
            ours("cosine", 10, **wrong)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_optimisers_are_those_of_torch(name):
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    optimizer = optim.optimizer(
        optim.OptimConfig(optimizer=name, momentum=0.9, weight_decay=0.1, norm_weight_decay=0.0), 0.5
    )(params, 2.0)
    decayed, flat = optimizer.param_groups
    assert (decayed["weight_decay"], flat["weight_decay"]) == (0.1, 0.0) and decayed["lr"] == flat["lr"] == 1.0
    assert decayed["params"][0] is params[0] and flat["params"][0] is params[1]
    assert type(optimizer).__name__.lower() == {"nesterov": "sgd"}.get(name, name)
    assert decayed.get("nesterov", False) == (name == "nesterov")
    assert (
        len(
            optim.optimizer(optim.OptimConfig(optimizer=name, momentum=0.9, weight_decay=0.1), 0.5)(
                params, 1.0
            ).param_groups
        )
        == 1
    )


def test_an_optimiser_of_timm():
    pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    cfg = optim.OptimConfig(optimizer="timm:lamb", weight_decay=0.1, norm_weight_decay=0.0)
    optimizer = optim.optimizer(cfg, 0.5)(params, 2.0)
    assert type(optimizer).__name__ == "Lamb" and [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 1.0]
    params[0].sum().backward()
    optimizer.step()
    assert not torch.equal(params[0], torch.ones(3, 2))
    with pytest.raises(UserError, match="timm has no optimizer lambb: try .*lamb"):
        optim.optimizer(optim.OptimConfig(optimizer="timm:lambb"), 0.5)
    with pytest.raises(UserError, match="--optimizer lion is unknown: choose sgd, .* or timm:NAME"):
        optim.OptimConfig(optimizer="lion")


def test_the_modern_protocol_gives_way_to_flags():
    plain = parse(["--distill", "kd"], teacher=False)
    modern = parse(["--distill", "kd", "--protocol", "modern", "--learning_rate", "0.002"], teacher=False)
    assert modern.training.optim.optimizer == "adamw" and modern.training.schedule.schedule == "cosine"
    assert modern.training.schedule.learning_rate == 0.002 and modern.training.ema.ema == 0.999
    assert modern.data.mixing.label_smoothing == 0.1 and modern.loss == dataclasses.replace(
        plain.loss, protocol="modern"
    )
    assert modern.off_default() == {"protocol": "modern", "learning_rate": 0.002}
    assert modern.data.stream.augment == "randaugment" and modern.network.drop_path == 0.1
    assert (modern.data.mixing.mixup, modern.data.mixing.cutmix) == (0.2, 1.0)


@pytest.mark.parametrize(
    ("flags", "mixing", "augment"),
    [
        ("--dataset utd_mhad", MixingConfig(label_smoothing=0.1), "none"),
        ("--dataset cifar100 --unlabelled x", MixingConfig(), "randaugment"),
        ("--dataset imagenet --cutmix 0", MixingConfig(label_smoothing=0.1, mixup=0.2), "randaugment"),
    ],
)
def test_the_modern_protocol_leaves_out_what_the_data_does_not_allow(flags, mixing, augment):
    modern = parse(["--distill", "kd", "--protocol", "modern", *flags.split()], teacher=False)
    assert modern.data.mixing == mixing and modern.data.stream.augment == augment


def test_augmented_batches():
    """Every image has operations of its own, a function of seed, epoch, step and rank."""
    data = make()

    def augmented(magnitude=9, seed=1, rank=0):
        return AugmentedLoader(resident_loader(data), 2, magnitude, seed, rank)

    plain, batches = list(resident_loader(data)), list(augmented())
    changes = 0
    for batch, source in zip(batches, plain, strict=True):
        image = batch.inputs["image"]
        assert batch.crop is None and batch.view_id is None and torch.equal(batch.target, source.target)
        assert image.min() >= 0 and image.max() <= 1 and image.is_contiguous(memory_format=torch.channels_last)
        moved = (image - source.inputs["image"]).abs().flatten(1).amax(1) > 0.01
        changes += int(moved.sum())
    assert len(data.train_labels) / 2 < changes < len(data.train_labels), "all images alike"
    later = augmented()
    later.set_epoch(1, 2)
    assert torch.equal(next(iter(later)).inputs["image"], batches[2].inputs["image"])
    for other in (augmented(seed=2), augmented(rank=1), augmented(magnitude=20)):
        assert not torch.equal(next(iter(other)).inputs["image"], batches[0].inputs["image"])
    later.set_epoch(2)
    again = augmented()
    again.set_epoch(2)
    assert torch.equal(next(iter(later)).inputs["image"], next(iter(again)).inputs["image"])


def kd_step(**kwargs):
    torch.manual_seed(0)
    method, data = method_dict["kd"], ToyData()
    (stage,) = stages.build_stages(
        method,
        method.Config(),
        cnn(4),
        network(cnn(6)),
        data,
        StepSetup(
            optim.optimizer(optim.OptimConfig(momentum=0.9, weight_decay=0.0), 0.5),
            device=torch.device("cpu"),
            **kwargs,
        ),
        stages.StagePlan(batch_size=8, epochs=1),
    )
    stage.step.train()
    return stage.step, data


def test_the_average_is_that_of_torch_and_is_restored():
    step, data = kd_step(ema=EmaConfig(0.7, 2))
    wanted = AveragedModel(step.student.model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    for i in range(6):
        step(data.batch(seed=i), PROGRESS)
        if i % 2:
            wanted.update_parameters(step.student.model)
    trained = copy.deepcopy(step.student.model.state_dict())
    with step.averaged():
        shown = copy.deepcopy(step.student.model.state_dict())
    assert all(torch.equal(trained[k], v) for k, v in step.student.model.state_dict().items())
    for k, v in wanted.module.state_dict().items():
        assert torch.allclose(shown[k].double(), v.double(), rtol=1e-6, atol=1e-7) or "num_batches" in k, k
    assert not torch.equal(shown["fc.weight"], trained["fc.weight"])
    again, _ = kd_step(ema=EmaConfig(0.7, 2))
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    for s in (step, again):
        for i in range(6, 8):
            s(data.batch(seed=i), PROGRESS)
    with step.averaged(), again.averaged():
        assert torch.equal(step.student.model.fc.weight, again.student.model.fc.weight)


def test_gradients_are_clipped():
    step, data = kd_step(optim=optim.OptimConfig(clip_grad=1e-3))
    before = [p.detach().clone() for p in step.main_params]
    step(data.batch(), PROGRESS)
    moved = sum(float((p.detach() - b).square().sum()) for p, b in zip(step.main_params, before, strict=True)) ** 0.5
    assert moved == pytest.approx(0.5 * 1e-3, rel=1e-3)


def test_mixed_batches():
    data = make()
    plain = list(resident_loader(data))

    def mixed(rank=0, **kwargs):
        return MixedLoader(resident_loader(data), 7, MixingConfig(**kwargs), seed=1, rank=rank)

    smooth = next(iter(mixed(label_smoothing=0.1)))
    onehot = F.one_hot(plain[0].target, 7).float()
    assert torch.allclose(smooth.soft_target, onehot * 0.9 + 0.1 / 7) and smooth.crop is not None
    logits = torch.randn(64, 7)
    assert torch.allclose(
        F.cross_entropy(logits, smooth.soft_target), F.cross_entropy(logits, smooth.target, label_smoothing=0.1)
    )
    for kind in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}):
        before = torch.get_rng_state()
        batches = list(mixed(**kind))
        assert torch.equal(torch.get_rng_state(), before)
        assert [len(b) for b in batches] == [len(b) for b in plain]
        for batch, source in zip(batches, plain, strict=True):
            assert torch.allclose(batch.soft_target.sum(1), torch.ones(len(batch))) and batch.crop is None
            assert torch.equal(batch.index, source.index) and torch.equal(batch.target, source.target)
        if kind == {"mixup": 0.4}:  # of the batch and itself rolled by one, with one weight for images and labels
            batch, source = batches[0], plain[0]
            image, other = source.inputs["image"], source.inputs["image"].roll(1, 0)
            differ = source.target != source.target.roll(1)
            share = batch.soft_target.gather(1, source.target[:, None])[differ][0]
            assert torch.allclose(batch.inputs["image"], share * image + (1 - share) * other, atol=1e-5)
        again = mixed(**kind)
        again.set_epoch(1, 2)
        assert torch.equal(next(iter(again)).inputs["image"], batches[2].inputs["image"])
        assert not torch.equal(next(iter(mixed(rank=1, **kind))).inputs["image"], batches[0].inputs["image"])
    for wrong in ({"label_smoothing": 1.0}, {"mixup": -1.0}):
        with pytest.raises(UserError, match="--label_smoothing|--mixup"):
            mixed(**wrong)


RECIPE = ("--optimizer", "adamw", "--schedule", "cosine", "--warmup_epochs", 1, "--learning_rate", 0.003)
RECIPE += ("--ema", 0.8, "--label_smoothing", 0.1, "--mixup", 0.2, "--cutmix", 1.0, "--clip_grad", 1.0)
RECIPE += ("--norm_weight_decay", 0, "--epochs", 3, "--few_ratio", 0.2, "--tb_backend", "none")
RECIPE += ("--model", "vit_micro_cifar", "--drop_path", 0.3, "--augment", "randaugment", "--augment_magnitude", 5)


def test_a_whole_recipe_resumes_with_the_same_numbers_and_saves_the_average(commands, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    commands.teacher(*RECIPE, "--save_root", whole).finished()
    assert commands.teacher(*RECIPE, "--save_root", stopped, signals=[(7, signal.SIGTERM)]).code == 143
    commands.teacher(*RECIPE, "--save_root", stopped).finished()
    (folder,), (other,) = ((root / "teachers" / "models").iterdir() for root in (whole, stopped))
    found = rows_of(folder, TIMING)
    assert rows_of(other, TIMING) == found
    assert [r["lr"] for r in found] == pytest.approx([0.00003, 0.003, 0.0015])
    assert any(r["test_acc"] != r["test_acc_trained"] for r in found)
    best = max(found, key=lambda r: r["test_acc"])
    done = commands("test_model.py", "--path", folder / "vit_micro_cifar_best.pth", "--dataset", "digits").finished()
    assert f"top-1 {best['test_acc']:.2f}" in done.out
    for argv, words in (
        (("--ema", 1), "--ema 1.0"),
        (("--warmup_epochs", 3), "--warmup_epochs 3"),
        (("--param_groups", "tsm"), "leave out --norm_weight_decay"),
    ):
        commands.teacher(*RECIPE, *argv, "--save_root", tmp_path / "refused").refused(words)


def test_published_weights_by_name(monkeypatch, commands, tmp_path):
    from torchvision.models._api import WeightsEnum

    net = model_dict["torchvision:resnet18"](num_classes=1000)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: net.state_dict())
    loaded = load_network("torchvision:resnet18", None, 1000, {"image": (3, 64, 64)})
    assert torch.equal(loaded.model.fc.weight, net.fc.weight) and loaded.name == "torchvision:resnet18"
    argv = ("--dataset", "digits", "--teacher", "torchvision:resnet18", "--save_root", tmp_path / "save")
    nowhere = {"https_proxy": "http://127.0.0.1:1", "TORCH_HOME": str(tmp_path)}
    commands("train_student.py", *argv, env=nowhere).refused("cannot download the weights of resnet18")

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(UserError, match="cannot download the weights of resnet18.*no network"):
        load_network("torchvision:resnet18", None, 1000, {"image": (3, 64, 64)})


def test_before_its_first_value_there_is_no_average():
    step, data = kd_step(ema=EmaConfig(0.7, 4))
    step(data.batch(), PROGRESS)
    trained = step.student.model.fc.weight.clone()
    with step.averaged():
        assert torch.equal(step.student.model.fc.weight, trained)


def test_the_last_checkpoint_holds_the_network_its_accuracy_is_of(commands, tmp_path):
    """With --ema that is the average; a continuation reads the weights trained elsewhere in the file."""
    argv = ("--ema", 0.9, "--epochs", 2, "--max_steps", 40, "--batch_size", 16, "--save_root", tmp_path)
    commands.teacher(*argv, "--tb_backend", "none").finished()
    (last,) = tmp_path.glob("teachers/models/*/resnet8_last.pth")
    state = torch.load(last, weights_only=True)
    live = state["step_state"]["trained"]
    assert not torch.equal(state["model"]["fc.weight"], live["student.model.fc.weight"])
    test = ("--path", last, "--dataset", "digits")
    said = commands("test_model.py", *test, cwd=tmp_path).finished().out
    assert f"top-1 {state['row']['test_acc']:.2f} " in said


def test_first_stages_do_not_warm_up(commands, teacher, tmp_path):
    """They keep the rate that was given, which is the one the warm-up leads to."""
    argv = ["--path_t", teacher, "--skip_validation", "--distill", "ab", "--init_epochs", 1, "--epochs", 3]
    argv += ["--warmup_epochs", 2, "--max_steps", 2, "--save_root", tmp_path, "--tb_backend", "none"]
    commands.student(*argv).finished()
    (rows,) = tmp_path.glob("students/models/*/metrics.jsonl")
    first, second, *_ = (json.loads(row)["lr"] for row in rows.read_text().splitlines())
    assert first == 0.05 and second < 0.01
