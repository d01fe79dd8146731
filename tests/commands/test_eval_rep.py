"""The linear probe: STL-10 and TinyImageNet as they are distributed, features once, both solvers, every network."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval_rep
import test_model
from core.protocols import UserError
from core.taps import TappedNet
from dataset import dataset_dict
from dataset.base import data_options
from helper.deploy.linear_probe import Fitted, extract, feature_net, fit_lbfgs, fit_sgd, random_crops
from helper.evaluation.evaluate import evaluate
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network, load_network
from helper.training.schedule import StepDecay
from models import model_dict
from tests.support import image_sets
from tests.support.shared import shared


@pytest.fixture(scope="module")
def stl10(tmp_path_factory):
    """A folder with stl10_binary/, and the images in it."""
    root = tmp_path_factory.mktemp("stl")
    return root, image_sets.stl10(root)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return image_sets.tiny_imagenet(tmp_path_factory.mktemp("tiny"))


def open_data(name, root, **options):
    return dataset_dict[name](data_options(root=root, **options))


def test_stl10_is_read_pixel_by_pixel(stl10):
    root, images = stl10
    for place in (root, root / "stl10_binary"):
        data = open_data("STL-10", place)
        assert data.classes == tuple(image_sets.STL10_CLASSES) and data.shapes == {"image": (3, 96, 96)}
        assert torch.equal(data.train_images, torch.from_numpy(images["train"][0]))
        assert torch.equal(data.test.images, torch.from_numpy(images["test"][0]))
        assert data.train_labels.tolist() == images["train"][1].tolist()
    small = open_data("stl10", root, image_size=32)
    assert small.test.images.shape == (20, 32, 32, 3)


def test_stl10_says_what_is_missing(stl10, tmp_path):
    whole = {f.name: f.read_bytes() for f in (stl10[0] / "stl10_binary").iterdir()}

    def folder(**changed):
        for name, content in {**whole, **{k.replace("__", "."): v for k, v in changed.items()}}.items():
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_bytes(content)
        return tmp_path

    with pytest.raises(UserError, match="lacks test_X.bin, class_names.txt; unpack stl10_binary.tar.gz"):
        open_data("stl10", folder(test_X__bin=None, class_names__txt=None))
    with pytest.raises(UserError, match="has 1000 bytes, but the 40 labels of train_y.bin need .*truncated"):
        open_data("stl10", folder(train_X__bin=whole["train_X.bin"][:1000]))
    with pytest.raises(UserError, match="labels from 0 to 0 instead of 1 to 10"):
        open_data("stl10", folder(test_y__bin=bytes(20)))
    with pytest.raises(UserError, match="names 2 classes instead of 10"):
        open_data("stl10", folder(class_names__txt=b"cat\ndog\n"))
    with pytest.raises(UserError, match="cannot read the list of classes .*class_names.txt': 'utf-8' codec"):
        open_data("stl10", folder(class_names__txt=b"\xff\xfe"))
    with pytest.raises(UserError, match="lacks train_X.bin, train_y.bin"):
        open_data("stl10", tmp_path / "nowhere")
    inner = tmp_path / "whole" / "stl10_binary"
    inner.mkdir(parents=True)
    for name in set(whole) - {"train_X.bin"}:
        (inner / name).write_bytes(whole[name])
    with pytest.raises(UserError, match="stl10_binary' lacks train_X.bin; unpack"):
        open_data("stl10", tmp_path / "whole")


def test_tinyimagenet_needs_no_preparation(tiny, tmp_path):
    for folder in (tiny / "train" / "n01" / "images", tiny / "val" / "images"):
        (folder / "._n01_0.JPEG").write_bytes(b"what macOS leaves next to a file")
    for place in (tiny, tiny.parent):
        data = open_data("TinyImageNet", place)
        assert data.classes == ("n01", "n02", "n03") and data.shapes == {"image": (3, 64, 64)}
        assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert sorted(data.test.labels.tolist()) == [0, 0, 1, 1, 2, 2]
        brightness = data.test.images.float().mean((1, 2, 3))
        by_class = [brightness[data.test.labels == i].mean().item() for i in range(3)]
        assert by_class[2] < by_class[0] < by_class[1]  # n03 was made dark, n02 bright
    prepared = tmp_path / "tiny-imagenet-200"  # as other toolboxes' script leaves it
    (prepared / "val").mkdir(parents=True)
    (prepared / "train").symlink_to(tiny / "train")
    for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (prepared / "val" / wnid).mkdir(exist_ok=True)
        (prepared / "val" / wnid / name).write_bytes((tiny / "val" / "images" / name).read_bytes())
    again = open_data("tinyimagenet", prepared)
    assert sorted(again.test.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert again.checksum == data.checksum


def test_tinyimagenet_says_what_is_missing(tiny, tmp_path):
    import shutil

    copy = Path(shutil.copytree(tiny, tmp_path / "tiny-imagenet-200"))
    annotations = copy / "val" / "val_annotations.txt"
    text = annotations.read_text()
    (copy / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(UserError, match="names val_0.JPEG, but .*images' lacks it"):
        open_data("tinyimagenet", tmp_path)
    annotations.write_text("".join(line for line in text.splitlines(True) if "val_5.JPEG" not in line))
    shutil.copy(tiny / "val" / "images" / "val_0.JPEG", copy / "val" / "images")
    with pytest.raises(UserError, match="has 1 images without a line in .*val_annotations.txt', such as val_5.JPEG"):
        open_data("tinyimagenet", tmp_path)
    lost = copy / "train" / "n03" / "images" / "n03_2.JPEG"
    lost.rename(copy / "n03_2.JPEG")
    with pytest.raises(UserError, match="lacks 1 images that its .*_boxes.txt name, such as n03_2.JPEG; .*delete"):
        open_data("tinyimagenet", tmp_path)
    (copy / "n03_2.JPEG").rename(lost)
    annotations.write_text(text.replace("n03", "n09"))
    with pytest.raises(UserError, match="names the class 'n09'"):
        open_data("tinyimagenet", tmp_path)
    annotations.write_bytes(b"\xff")
    with pytest.raises(UserError, match="cannot read the list of classes .*val_annotations.txt'"):
        open_data("tinyimagenet", tmp_path)
    annotations.unlink()
    with pytest.raises(UserError, match="neither val_annotations.txt nor folders"):
        open_data("tinyimagenet", tmp_path)
    for wnid in ("n01", "n04"):
        (copy / "val" / wnid).mkdir()
        shutil.copy(tiny / "val" / "images" / "val_0.JPEG", copy / "val" / wnid)
    with pytest.raises(UserError, match="val/ has no class n02"):
        open_data("tinyimagenet", tmp_path)
    for file in (copy / "train" / "n02" / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no images of n02"):
        open_data("tinyimagenet", tmp_path)
    shutil.rmtree(copy / "val")
    with pytest.raises(UserError, match="lacks val/; unpack"):
        open_data("tinyimagenet", tmp_path)
    (copy / "train").rename(copy / "val")
    with pytest.raises(UserError, match="tiny-imagenet-200' lacks train/; unpack"):
        open_data("tinyimagenet", tmp_path)
    with pytest.raises(UserError, match="lacks train/ and val/"):
        open_data("tinyimagenet", tmp_path / "nowhere")


@pytest.mark.slow  # twelve thousand images in the layout of those above
def test_the_shared_sample_of_tinyimagenet():
    data = open_data("tinyimagenet", shared("tiny-imagenet-200"), image_size=8)
    assert len(data.train_labels) == 10_000 and len(data.test) == 2_000 and data.num_classes == 200
    assert data.train_labels.bincount().tolist() == [50] * 200 and data.test.labels.bincount().tolist() == [10] * 200


# ------------------------------------------------------------------ features and solvers


def network(name, num_classes=10):
    spec = model_dict[name]
    torch.manual_seed(0)
    return Network(spec, spec(num_classes=num_classes), Checkpoint(Path("random"), {}))


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "mobilenetV2", "ShuffleV1", "ShuffleV2", "resnet8_aux"])
def test_features_are_what_the_classifier_reads(name):
    """Whatever the last layer is called; computed once, in eval mode, resized to what the network sees."""
    net = network(name)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 48, 48, 3), dtype=torch.uint8, generator=rng)
    tapped = feature_net(net)
    x = extract(tapped, images, 32, torch.device("cpu"), batch=2)
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    with torch.no_grad():
        whole = torch.nn.functional.interpolate(
            images.permute(0, 3, 1, 2).float() / 255, (32, 32), mode="bilinear", antialias=True
        )
        logits = tapped({"image": whole}, ())["logits"]
        torch.testing.assert_close(tapped.head(x), logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, net.model.state_dict()[k]) for k, v in before.items())
    assert not tapped.training


def test_published_normalisation_can_be_had():
    net = network("resnet8")
    images = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    own, published = feature_net(net), feature_net(net, (0.5,) * 3, (0.5,) * 3)
    assert published.mean.flatten().tolist() == [0.5] * 3 and own.mean.flatten().tolist() != [0.5] * 3
    a, b = (extract(n, images, 32, torch.device("cpu")) for n in (own, published))
    assert not torch.equal(a, b)


def test_random_crops_lie_inside_and_differ():
    ramp = torch.linspace(0, 1, 64).expand(40, 1, 64, 64)  # brighter to the right
    crops = random_crops(ramp, 32, torch.Generator().manual_seed(0))
    assert crops.shape == (40, 1, 32, 32) and crops.min() >= 0 and crops.max() <= 1
    rising = (crops[:, 0, 5, -1] > crops[:, 0, 5, 0]).float().mean()
    assert 0.2 < rising < 0.8, "about half are mirrored"
    width = (crops[:, 0, 5, -1] - crops[:, 0, 5, 0]).abs()
    assert width.min() < 0.5 < width.max()
    again = random_crops(ramp, 32, torch.Generator().manual_seed(0))
    assert torch.equal(crops, again)


def clusters(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 6
    centres = 2 * torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    return centres[y] + torch.randn(n, 8, generator=rng), y


def test_both_solvers_separate_what_can_be_separated():
    train, test = clusters(240, 0), clusters(120, 1)
    schedule = StepDecay(0.1, (5, 8), 0.1)
    kwargs = {"epochs": 10, "batch_size": 16, "schedule": schedule, "weight_decay": 0.0}
    sgd = fit_sgd(train, test, 6, seed=0, **kwargs)
    assert sgd.top1 > 90 and sgd.best >= sgd.top1 and 1 <= sgd.best_epoch <= 10 and sgd.top5 >= sgd.top1
    assert fit_sgd(train, test, 6, seed=0, **kwargs).top1 == sgd.top1
    lbfgs = fit_lbfgs(train, test, 6, iterations=100, weight_decay=1e-3)
    assert lbfgs.top1 > 90 and lbfgs.train_top1 >= lbfgs.top1 - 5
    shuffled = train[0], train[1][torch.randperm(240, generator=torch.Generator().manual_seed(2))]
    assert fit_lbfgs(shuffled, test, 6, iterations=100, weight_decay=1e-3).top1 < 60


def test_lbfgs_reaches_the_optimum_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    (x, y), test = clusters(120, 3), clusters(120, 4)
    decay = 1e-2
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    theirs = LogisticRegression(C=1 / (decay * len(x)), max_iter=1000, tol=1e-8).fit(z.numpy(), y.numpy())
    z_test = (test[0] - x.mean(0)) / x.std(0, unbiased=False)
    want = 100 * theirs.score(z_test.numpy(), test[1].numpy())
    assert fit_lbfgs((x, y), test, 6, iterations=200, weight_decay=decay).top1 == pytest.approx(want, abs=0.9)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student of HSAKD as its authors save it."""
    path = tmp_path_factory.mktemp("student") / "mobilenetV2_aux.pth.tar"
    torch.manual_seed(0)
    torch.save({"net": model_dict["mobilenetV2_aux"](num_classes=10).state_dict(), "acc": 0.1, "epoch": 1}, path)
    return path


def test_the_printed_command_runs(commands, student, stl10, tiny, tmp_path):
    argv = ("--arch", "mobilenetV2", "--dataset", "STL-10", "--data", stl10[0], "--s-path", student)
    out = tmp_path / "probe.json"
    done = commands("eval_rep.py", *argv, "--gpu", 0, "--manual", 0, "--epochs", 2, "--views", 2, "--json", out)
    assert "mobilenetV2_aux on stl10: 80 + 20 features of width 1280" in done.finished().out
    found = json.loads(out.read_text())
    assert found["epochs"] == 2 and found["best"] >= found["top1"] and found["solver"] == "sgd"
    assert found["network"] == "mobilenetV2_aux" and found["images"] == [40, 20]
    argv = ("--arch", "mobilenetV2", "--dataset", "TinyImageNet", "--data", tiny, "--s-path", student)
    done = commands("eval_rep.py", *argv, "--solver", "lbfgs", "--norm", "published")
    assert "12 + 6 features" in done.finished().out
    commands("eval_rep.py", *argv, "--views", 0).refused("--views 0")
    commands("eval_rep.py", *argv[:4], "--s-path", student, "--data", tmp_path).refused("TinyImageNet", "lacks train/")


def test_every_view_has_the_label_of_its_image(tmp_path, monkeypatch):
    """Where each further view is the whole image again, features and labels say the same twice."""
    seen, found = [], Fitted(0.0, 0.0, 0.0, 0.0, 1, 1, 0.0)
    monkeypatch.setattr(eval_rep, "fit_lbfgs", lambda train, *_, **__: seen.append(train) or found)
    monkeypatch.setattr("helper.deploy.linear_probe.random_crops", lambda x, size, rng: x)
    path = tmp_path / "resnet8.pth"
    torch.save(model_dict["resnet8"](num_classes=10).state_dict(), path)
    data = ("--dataset", "digits", "--data", str(tmp_path), "--few_ratio", "0.05", "--views", "2")
    eval_rep.main(["--s_path", str(path), *data, "--solver", "lbfgs"])
    for values in seen[0]:
        first, second = values.chunk(2)
        assert torch.equal(first, second) and len(first.unique(dim=0)) >= 10


def test_wrong_input_is_one_sentence(student, tmp_path):
    for folder in (tmp_path / part / name for part in ("train", "val") for name in ("a", "b")):
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    torch.save(model_dict["sensor_cnn"](num_classes=3).state_dict(), tmp_path / "sensor_cnn_best.pth")
    given = ("--s_path", student, "--arch", "mobilenetV2", "--data", tmp_path)
    for argv, words in (
        ((*given, "--init_lr", 0), "--init_lr 0.0 must be above 0"),
        ((*given, "--weight_decay", -1), "--weight_decay -1.0 must be at least 0"),
        ((*given, "--image_size", 0), "--image_size 0 must be at least 8"),
        ((*given, "--json", tmp_path / "none" / "x.json"), "its folder does not exist"),
        ((*given, "--dataset", "imagenet"), "imagenet is not an image set held in memory"),
        (("--s_path", tmp_path / "sensor_cnn_best.pth", "--arch", "sensor_cnn"), "sensor_cnn reads sensor"),
    ):
        with pytest.raises(UserError, match=words):
            eval_rep.main([str(a) for a in argv])


def test_the_printed_test_command_runs(commands, teacher, student, tmp_path):
    argv = ("--arch", "mobilenetV2_aux", "--student-weights", student, "--dataset", "digits", "--data", tmp_path)
    done = commands("test_model.py", *argv, "--gpu", 0, "--manual", 0, "--image_size", 16).finished()
    assert "aux4 top-1" in done.out and "parameters 697" in done.out  # of the network without its heads, 10 classes
    assert "aux1" not in commands("test_model.py", "--path", teacher, "--dataset", "digits").finished().out


def test_heads_are_evaluated_in_the_one_pass(tmp_path, monkeypatch, capsys):
    """Every image once; a head's line is the accuracy of the sum over its rotations."""
    torch.manual_seed(0)
    path = tmp_path / "resnet8_aux.pth"
    torch.save(model_dict["resnet8_aux"](num_classes=10).state_dict(), path)
    data = open_data("digits", tmp_path, image_size=16)
    net = load_network(path, None, 10, data.shapes).tapped(("aux1", "aux2", "aux3")).eval()

    def sums(inputs):
        return {k: v.unflatten(1, (10, 4)).sum(2) for k, v in net(inputs).items() if k != "logits"}

    want = evaluate(sums, data.test_loader(500, device=torch.device("cpu")), torch.device("cpu"))
    images, forward = [], TappedNet.forward
    monkeypatch.setattr(
        TappedNet, "forward", lambda self, inputs: images.append(len(inputs["image"])) or forward(self, inputs)
    )
    test_model.main(["--path", str(path), "--dataset", "digits", "--image_size", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert images == [360, 1]  # one of them for the multiply-accumulates
    for name, result in want.items():
        assert f"{name} top-1 {result['acc']:.2f}  top-5 {result['acc_top5']:.2f}" in lines
    assert lines[-1].endswith("img/s with its heads")
