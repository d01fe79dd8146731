"""Images without labels: what a batch holds, what learns from them, and what refuses."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.protocols import FullSet, UserError
from dataset.base import UnlabelledConfig
from dataset.images.resident import ResidentData, Split
from dataset.images.unlabelled import with_unlabelled
from distiller_zoo import method_dict
from helper.deploy.linear_probe import neighbours
from tests.support.cases import config, registry_cases
from tests.support.contract import PROGRESS, make_step
from tests.support.run_folders import rows_of
from tests.support.toys import B

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Fifty grey squares in a tree, and a file that is none."""
    root = tmp_path_factory.mktemp("unlabelled")
    for i in range(50):
        place = root / f"part{i % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 24), 100 + i, np.uint8)).save(place / f"{i:02d}.png")
    (root / "notes.txt").write_text("no image")
    return root


def data(folder, ratio=0.5, count=20):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    base = ResidentData("toy", "abcd", Split(images, labels), Split(images[:4], labels[:4]), flips=False)
    return with_unlabelled(base, UnlabelledConfig(str(folder), ratio))


def test_a_batch_holds_both_and_an_epoch_every_image(folder):
    both = data(folder)
    loader = both.train_loader(8, seed=0, device=CPU)
    assert len(loader) == 12  # fifty in fours
    seen = []
    for batch in loader:
        assert batch.labelled == 4 and len(batch) == 8
        assert (batch.target[:4] >= 0).all() and (batch.target[4:] == -1).all()
        assert (batch.index[:4] < 20).all() and (batch.index[4:] >= 20).all()
        assert torch.equal(batch.view_id, batch.index * both.num_crops + batch.crop)
        assert not batch.inputs["image"][:4].any() and batch.inputs["image"][4:].max() > 0.3
        seen += batch.index.tolist()
    assert len({i for i in seen if i >= 20}) == 48 and {i for i in seen if i < 20} == set(range(20))
    assert both.num_crops == both.others.num_crops and len(both.train_labels) == 70
    assert both.labelled.name == "toy" and both.checksum != both.labelled.checksum


def test_places_in_the_set_that_the_labelled_part_was_drawn_from(folder):
    """One teacher cache for all parts: rows of the labelled images where the whole set has them, the others behind."""
    kept = torch.tensor([1, 4, 5, 9, 12, 13, 16, 17, 18, 19])
    images, labels = torch.zeros(10, 16, 16, 3, dtype=torch.uint8), torch.arange(10) % 4
    splits, full = (Split(images, labels), Split(images[:4], labels[:4])), FullSet("whole", 20, kept)
    part = ResidentData("toy", "abcd", *splits, flips=False, full=full)
    both = with_unlabelled(part, UnlabelledConfig(str(folder), 0.5))
    assert both.full.count == 70 and both.full.checksum != "whole"
    for batch in both.train_loader(8, seed=0, device=CPU):
        places = both.full.positions[batch.index]
        assert torch.equal(batch.view_id, places * both.num_crops + batch.crop)
        assert set(places[:4].tolist()) <= set(kept.tolist()) and (places[4:] >= 20).all()


def test_the_share_of_labels_and_parts_of_ranks(folder):
    assert [next(iter(data(folder, r).train_loader(8, seed=0, device=CPU))).labelled for r in (0.01, 0.25, 0.99)] == [
        1,
        2,
        7,
    ]
    both = data(folder)
    ranks = [both.train_loader(8, seed=0, device=CPU, rank=r, world_size=2) for r in (0, 1)]
    one, two = (next(iter(loader)) for loader in ranks)
    assert one.labelled == two.labelled == 2 and not set(one.index.tolist()) & set(two.index.tolist())


def test_an_epoch_goes_on_where_it_was_stopped(folder):
    loader = data(folder).train_loader(8, seed=0, device=CPU)
    loader.set_epoch(3)
    whole = [batch.view_id.tolist() for batch in loader]
    loader.set_epoch(3, 5)
    assert [batch.view_id.tolist() for batch in loader] == whole[5:]
    loader.set_epoch(4)
    assert next(iter(loader)).view_id.tolist() != whole[0]


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_the_ratio_lies_between_0_and_1(value):
    with pytest.raises(UserError, match="--label_ratio .* must be above 0 and below 1"):
        UnlabelledConfig("x", value)


def test_bad_folders(folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        data(tmp_path / "nowhere")
    for hidden in (tmp_path / ".thumbnails" / "a.png", tmp_path / "._b.png"):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes((folder / "part0/00.png").read_bytes())
    with pytest.raises(UserError, match="holds no image"):
        data(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="torn.png' is corrupt or not an image"):
        data(tmp_path)
    (tmp_path / "whole.png").write_bytes((folder / "part0/00.png").read_bytes())
    base = data(folder).labelled
    assert len(with_unlabelled(base, UnlabelledConfig(str(tmp_path), 0.5), skip_corrupt=True).train_labels) == 21
    with pytest.raises(UserError, match="--batch_size 1 is too small for samples"):
        data(folder).train_loader(1, seed=0, device=CPU)


SILENT = [n for n, m in method_dict.items() if m.teacher_mode == "frozen" and not m.needs_labels(config(n))]


@pytest.mark.parametrize("name", SILENT)
def test_methods_that_read_labels_say_so(name):
    """Other targets change no term but cls where the method does not say that it needs labels."""
    case = next(key for key in registry_cases() if key.startswith(f"{name}-"))
    method, cfg, student, teacher, toy = registry_cases()[case]

    def terms(batch):
        step = make_step(method, cfg, student, teacher, toy, B)
        step.train()
        torch.manual_seed(1)
        return {k: v for k, v in step(batch, PROGRESS).terms.items() if k != "cls"}

    batch = toy.batch()
    other = dataclasses.replace(batch, target=(batch.target + 1) % toy.num_classes)
    one, two = terms(batch), terms(other)
    assert one and all(torch.equal(one[k], two[k]) for k in one)


def test_cls_is_computed_on_labelled_rows_only():
    method, cfg, student, teacher, toy = registry_cases()["kd-resnet8-resnet8x4"]
    batch = toy.batch()
    half = dataclasses.replace(batch, target=torch.cat([batch.target[:3], batch.target[3:] * 0 - 1]), labelled=3)
    make = lambda: make_step(method, cfg, student, teacher, toy, B)  # noqa: E731
    step = make()
    s, t = step.objective.features(half)
    weights = step.method.weights(PROGRESS)
    terms = step.objective.main_terms(s, t, half, PROGRESS, weights)
    assert torch.equal(terms["cls"], torch.nn.functional.cross_entropy(s["logits"][:3], batch.target[:3]))
    assert torch.equal(terms["div"], step.objective.main_terms(s, t, batch, PROGRESS, weights)["div"])
    result = make()(half, PROGRESS)
    assert result.logits.shape == (3, toy.num_classes) and torch.equal(result.target, batch.target[:3])


def test_micro_batches_without_any_label_have_a_loss():
    method, cfg, student, teacher, toy = registry_cases()["kd-resnet8-resnet8x4"]
    cfg = dataclasses.replace(cfg, cls=0.0)
    step = make_step(method, cfg, student, teacher, toy, B, accumulate=2)
    step.train()
    result = step(dataclasses.replace(toy.batch(), labelled=0), PROGRESS)
    assert result.logits.shape == (0, toy.num_classes) and result.loss > 0
    torch.testing.assert_close(result.loss, cfg.div * result.terms["div"])


def test_a_run_with_a_tenth_of_the_labels(commands, teacher, folder, tmp_path):
    argv = ["--path_t", teacher, "--few_ratio", 0.1, "--unlabelled", folder, "--epochs", 2, "--batch_size", 16]
    argv += ["--save_root", tmp_path, "--tb_backend", "none", "--teacher_cache", tmp_path / "cache"]
    done = commands.student("--distill", "kd", *argv).finished()
    (count,) = re.findall(r"(\d+) images with labels and 50 without; 0.5 of each batch has labels", done.out)
    (run,) = (tmp_path / "students" / "models").iterdir()
    rows = rows_of(run)
    assert all(0 <= row["train_acc"] <= 100 and row["train_loss"] > 0 for row in rows) and len(rows) == 2
    shape = json.loads((tmp_path / "cache" / "key.json").read_text())["shape"]
    assert 130 < int(count) < 160 and 10 * (shape[0] - 50) == pytest.approx(100 * int(count), rel=0.05)  # of all trials
    for flags, words in (
        (["--distill", "dkd"], ["--distill dkd reads the label of every image"]),
        (["--distill", "crd"], ["--distill crd reads the label of every image"]),
        (["--distill", "kd", "--mixup", 0.2], ["need labels"]),
        (["--distill", "kd", "--accumulate", 2], ["whole batches"]),
    ):
        commands.student(*flags, *argv).refused(*words)


def test_a_run_without_any_label(commands, teacher, folder, tmp_path):
    """The student learns its teacher's logits; neighbours of its features on a labelled set evaluate it."""
    argv = ["--dataset", "unlabelled", "--data_folder", folder, "--path_t", teacher, "--epochs", 2]
    argv += ["--batch_size", 16, "--save_root", tmp_path, "--tb_backend", "none", "--eval_probe", "digits"]
    done = commands.student("--distill", "kd", "-c", 0, *argv).finished()
    assert "50 images without labels; the test accuracy is that of a knn probe on digits" in done.out
    (run,) = (tmp_path / "students" / "models").iterdir()
    rows = rows_of(run)
    assert len(rows) == 2 and all(row["train_loss"] > 0 and "train_acc" not in row for row in rows)
    assert all(20 < row["test_acc"] <= row["test_acc_top5"] and 0 < row["test_loss"] < 10 for row in rows)
    facts = json.loads((run / "parameters.json").read_text())
    assert facts["num_classes"] == 10 and facts["evaluated_on"] == "knn probe on digits"
    test = ["test_model.py", "--path", run / f"{facts['model_s']}_best.pth"]
    commands(*test).refused("trained on images without labels: name a labelled set with --dataset")
    commands(*test, "--dataset", "digits").finished()
    for flags, words in (
        (["--distill", "kd"], "no labels for a cross-entropy: pass -c 0"),
        (["--distill", "crd", "-c", 0], "--distill crd reads the label of every image"),
        (["--distill", "vanilla", "-c", 0], "learns from labels alone"),
        (["--distill", "kd", "-c", 0, "--teacher_probe", "means"], "--teacher_probe fits a classifier to labels"),
        (["--distill", "kd", "-c", 0, "--few_ratio", 0.5], "--few_ratio choose among labelled images"),
        (["--distill", "kd", "-c", 0, "--eval_probe", "imagenet"], "--eval_probe imagenet|no ImageNet in"),
        (["--distill", "kd", "-c", 0, "--unlabelled", folder], "--dataset unlabelled has no labels"),
        (["--distill", "kd", "--dataset", "digits"], "--eval_probe evaluates a student of --dataset unlabelled"),
    ):
        said = commands.student(*argv, *flags)
        assert said.code == 2 and re.search(words, said.err + said.out), (flags, said.out, said.err)


def test_a_student_of_features_has_no_classifier_that_passes_for_one(commands, teacher, folder, tmp_path):
    argv = ["--dataset", "unlabelled", "--data_folder", folder, "--path_t", teacher, "--epochs", 1, "--batch_size", 16]
    argv += ["--save_root", tmp_path, "--tb_backend", "none", "--eval_probe", "digits", "--eval_probe_head", "linear"]
    commands.student("--distill", "embed", "-c", 0, "-d", 0, *argv).finished()
    (best,) = (tmp_path / "students" / "models").glob("*/*_best.pth")
    assert len(torch.load(best, weights_only=True)["model"]["fc.weight"]) == 1
    again = ["--dataset", "digits", "--path_t", best, "--save_root", tmp_path, "--distill", "kd"]
    commands.student(*again).refused("has no classifier for this data", "it was trained for 1 classes")


def test_neighbours_vote_by_similarity():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]), torch.tensor([0, 1, 0])
    votes = neighbours(train, torch.tensor([[5.0, 0.0], [1.0, 1.0]]), 3)
    torch.testing.assert_close(votes.sum(1), torch.ones(2))
    assert votes[0, 0] > 0.99 and votes[1, 0] > votes[1, 1] and not votes[:, 2].any()
    similar = torch.tensor([0.5**0.5, 0.5**0.5, 2.1 / (2 * 4.01) ** 0.5]) / 0.07
    torch.testing.assert_close(votes[1, 1], similar.softmax(0)[1])
