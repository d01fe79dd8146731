"""Class names travel with checkpoints; a teacher of other classes, or in another order, does not teach wrong labels."""

import pytest
import torch
from PIL import Image

from core.protocols import UserError
from helper.networks.checkpoint import load_file
from helper.networks.classes import matched, order_of
from helper.networks.load import load_network

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
    with pytest.raises(UserError, match=r"another order \(class 0 is 3 there, 0 here\): pass --match_classes"):
        matched(there, digits, False)
    back = matched(there, digits, True)
    with torch.no_grad():
        assert torch.equal(back.model.eval()(x), here.model.eval()(x))
    assert back.checksum != there.checksum, "a teacher cache tells them apart"
    assert matched(here, digits, True) is here
    with pytest.raises(UserError, match=r"other classes \(3, 1, 4, ...; the data set has cat, which it does not know"):
        matched(load_network(reordered, None, 10, SHAPES), ["cat", *digits[1:]], True)


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
        done.refused("the teacher resnet8 puts out logits of up to", "another normalisation")


def test_one_class_is_refused(commands, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40)).save(tmp_path / part / "only" / f"{i}.png")
    done = commands.teacher(
        "--dataset", "imagenet", "--data_folder", tmp_path, "--save_root", tmp_path / "save", *SHORT
    )
    done.refused("imagenet holds one class, only")
