"""A teacher is what it was trained to be: the same classes in the same order, the same normalisation, or it is said."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from core.protocols import UserError
from helper.evaluation.evaluate import near_chance
from helper.networks.checkpoint import Checkpoint, load_file
from helper.networks.classes import matched, order_of
from helper.networks.head_probe import with_probe
from helper.networks.headless import with_places
from helper.networks.load import (
    Network,
    evaluation_notice,
    load_network,
    size_notice,
    started_from,
    with_normalisation,
    without_classifier,
)
from models import model_dict
from tests.support.toys import ToyData

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
SHAPES = {"image": (3, 32, 32)}
SHORT = ("--epochs", 1, "--max_steps", 2, "--tb_backend", "none")


@pytest.fixture(scope="module")
def reordered(teacher, tmp_path_factory):
    """The teacher as if it had been trained with its classes in another order."""
    content = load_file(teacher)
    assert content["meta"]["classes"] == [str(i) for i in range(10)]
    content["meta"] = {**content["meta"], "classes": [str(i) for i in ORDER]}
    for name in ("fc.weight", "fc.bias"):
        content["model"][name] = content["model"][name][ORDER]
    path = tmp_path_factory.mktemp("reordered") / "resnet8_best.pth"
    torch.save(content, path)
    return path


def test_orders():
    assert order_of("abc", "abc") == [0, 1, 2] and order_of("cab", "abc") == [1, 2, 0]
    assert order_of(["big_cat", "Dog"], ["dog", "big cat"]) == [1, 0]
    assert order_of("abc", "abd") is None
    assert order_of("abc", "012") == order_of("012", "abc") == [], "numbers stand for missing names"
    lexical = sorted(str(i) for i in range(12))  # folders 0..11
    assert order_of([str(i) for i in range(12)], lexical) == [int(name) for name in lexical]


def test_logits_are_permuted(teacher, reordered):
    digits, x = [str(i) for i in range(10)], torch.rand(4, 3, 32, 32)
    there, here = (load_network(p, None, 10, SHAPES) for p in (reordered, teacher))
    with pytest.raises(
        UserError, match=r"another order \(class 0 is 3 in the checkpoint, 0 in the data set\): pass --match"
    ):
        matched(there, digits, False)
    back = matched(there, digits, True)
    with torch.no_grad():
        assert torch.equal(back.model.eval()(x), here.model.eval()(x))
    assert back.checksum != there.checksum, "a teacher cache tells them apart"
    assert matched(here, digits, True) is here
    with pytest.raises(UserError, match=r"other classes \(3, 1, 4, 0, 5 and 5 more; the data set has cat, which it"):
        matched(load_network(reordered, None, 10, SHAPES), ["cat", *digits[1:]], True)


def two_tokens():
    """A DeiT, whose logits are the mean of two classifiers."""
    spec = model_dict["vit_micro_cifar_distilled"]
    return Network(spec, spec(num_classes=10).eval(), Checkpoint(Path("deit.pth"), {}, {"classes": list("abcdefghij")}))


@torch.no_grad()
def test_both_classifiers_of_a_deit_are_permuted_or_cut():
    x, network = torch.rand(2, 3, 32, 32), two_tokens()
    logits = network.model(x)
    torch.testing.assert_close(matched(network, list("jabcdefghi"), True).model(x), logits[:, [9, *range(9)]])
    network = two_tokens()
    logits = network.model(x)
    torch.testing.assert_close(with_places(network, [7, 2]).model(x), logits[:, [7, 2]])
    with pytest.raises(UserError, match="--teacher_probe fits one classifier"):
        with_probe(network, "means", ToyData(), Path("nowhere"), torch.device("cpu"))
    bare = without_classifier(two_tokens(), "a test").tapped(("pooled",)).eval()
    assert {name: tuple(v.shape) for name, v in bare({"image": x}).items()} == {"pooled": (2, 96)}


def test_a_deit_starts_from_weights_of_other_classes(tmp_path):
    spec, path = model_dict["vit_micro_cifar_distilled"], tmp_path / "deit.pth"
    weights = spec(num_classes=7).state_dict()
    torch.save({"model": weights, "meta": {"arch": spec.name}}, path)
    model = started_from(spec, str(path))(num_classes=5)
    assert len(model.head.weight) == len(model.head_dist.weight) == 5
    assert torch.equal(model.dist_token, weights["dist_token"])


def test_a_teacher_in_another_order_is_refused_or_matched(commands, teacher, reordered, tmp_path):
    def student(path, *more):
        return commands.student("--path_t", path, *SHORT, "--save_root", tmp_path / path.parent.name, *more)

    student(reordered).refused("another order", "--match_classes")
    student(reordered, "--skip_validation").refused("another order", "--match_classes")
    accuracies = []
    for path in (teacher, reordered):
        out = student(path, "--match_classes").finished().out
        accuracies.append(next(line.split(": ")[-1] for line in out.splitlines() if "teacher accuracy" in line))
    assert accuracies[0] == accuracies[1]
    commands("test_model.py", "--path", reordered, "--dataset", "digits").refused("another order", "--match_classes")


def test_logits_that_teach_nothing_are_refused(commands, teacher, tmp_path):
    content = load_file(teacher)
    for factor in (1e30, float("inf")):
        content["model"]["fc.weight"] = content["model"]["fc.weight"].abs() * factor
        torch.save(content, tmp_path / "resnet8_best.pth")
        done = commands.student(
            *(
                "--path_t",
                tmp_path / "resnet8_best.pth",
                "--skip_validation",
                *SHORT,
                "--save_root",
                tmp_path / str(factor),
            )
        )
        done.refused("the largest logit of the teacher resnet8", "another normalisation")


def test_one_class_is_refused(commands, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40)).save(tmp_path / part / "only" / f"{i}.png")
    done = commands.teacher(
        "--dataset", "imagenet", "--data_folder", tmp_path, "--save_root", tmp_path / "save", *SHORT
    )
    done.refused("imagenet has only one class, only")


def test_another_normalisation(teacher):
    network, flags = load_network(teacher, None, 10, SHAPES), ("--mean_t", "--std_t")
    own, x = network.spec, torch.rand(4, 3, 32, 32)
    other = with_normalisation(network, [0.5], [0.5], flags)
    assert (other.spec.mean, other.spec.std) == ((0.5,) * 3, (0.5,) * 3) and other.checksum != network.checksum
    with torch.no_grad():
        got, want = other.tapped().eval()({"image": x})["logits"], network.model.eval()(2 * x - 1)
    assert torch.allclose(got, want, atol=1e-5)
    only_std = with_normalisation(network, None, [1 / 255] * 3, flags).spec
    assert only_std.mean == own.mean and only_std.std == (1 / 255,) * 3
    assert with_normalisation(network, None, None, flags) is network
    for mean, std, words in (
        ([0.5] * 2, None, "--mean_t 0.5 0.5: give one"),
        (None, [0], "--std_t 0 0 0 must"),
    ):
        with pytest.raises(UserError, match=words):
            with_normalisation(network, mean, std, flags)


def test_a_network_as_good_as_guessing_is_warned_of(commands, teacher, tmp_path):
    """Normalised as for pixels of 0..255, it sees next to nothing."""
    wrong = ("--mean_t", 0, "--std_t", 255)
    argv = ("--path_t", teacher, *SHORT, "--save_root", tmp_path)
    out = commands.student(*argv, *wrong).finished().out
    assert "WARNING: resnet8 reaches" in out and "--mean_t, --std_t; used: mean 0 0 0, std 255" in out
    out = commands("test_model.py", "--path", teacher, "--dataset", "digits", "--mean", 0, "--std", 255).finished().out
    assert "guessing gives 10.00 %" in out and "(--match_classes)" in out
    spec = model_dict["resnet8"]
    for classes, acc, warned in ((10, 20, True), (10, 21, False), (2, 62, True), (2, 63, False), (100, 3, False)):
        assert (near_chance(acc, classes, spec, (3, 32, 32), ("", "", "")) is not None) == warned


def test_the_size_of_the_publishers_evaluation_is_named():
    spec = model_dict["torchvision:efficientnet_b1"]
    network = Network(spec, torch.nn.Identity(), Checkpoint(Path(spec.name), {}))
    (notice,) = evaluation_notice(network, {"image": (3, 224, 224)})
    assert "evaluates it on images of 240 px, bicubic (--image_size 240); these have 224 px" in notice
    spec = model_dict["torchvision:resnet18"]
    network = Network(spec, torch.nn.Identity(), Checkpoint(Path(spec.name), {}))
    assert evaluation_notice(network, {"image": (3, 224, 224)}) == []


def test_images_far_smaller_than_the_network_is_made_for_are_named():
    spec = model_dict["torchvision:resnet18"]
    (notice,) = size_notice(spec, {"image": (3, 32, 32)})
    assert "made for images of 224 px, these have 32 px (--image_size 224" in notice
    assert size_notice(spec, {"image": (3, 64, 64)}) == size_notice(model_dict["resnet8"], {"image": (3, 16, 16)}) == []
