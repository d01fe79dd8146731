"""Image folders that are decoded as they are read: by workers and by DALI, alone and by rank."""

import hashlib
import json
import pickle
import shutil
import signal
import sys
import tarfile

import numpy as np
import pytest
import torch
import torchvision.datasets.imagenet
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from scipy.io import savemat
from torchvision.transforms import v2

from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions, data_options
from dataset.images.imagenet import Centre, View
from helper.deploy.as_trained import options_as_trained
from scripts import sort_imagenet_val
from tests.support.commands import AT_ONCE, ROOT
from tests.support.run_folders import TIMING, rows_of
from tests.support.shared import shared

CPU = torch.device("cpu")
CLASSES, TRAIN, VAL = ("n01", "n02", "n03"), 9, 4
SIZE = 16
TRAINING = {"seed": 3, "device": CPU}


def write_tree(root):
    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for c, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                # a colour per class with smooth noise, so that JPEG keeps it and a net can learn it
                noise = rng.integers(0, 60, (5, 6, 3), dtype=np.uint8)
                image = Image.fromarray(noise).resize((30, 24))
                pixels = np.asarray(image).copy()
                pixels[..., c] += 150
                Image.fromarray(pixels).convert("L" if i == 1 else "RGB").save(folder / f"{name}_{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "imagenet")


@pytest.fixture
def own_tree(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "ImageNet")
    return tmp_path / "ImageNet"


def load(root, **options):
    return dataset_dict["imagenet"](data_options(root, image_size=SIZE, **options))


def images(batches):
    return torch.cat([b.inputs["image"] for b in batches])


def index(batches):
    return torch.cat([b.index for b in batches]).tolist()


def dali_or_skip(kind):
    if kind == "cpu":
        pytest.importorskip("nvidia.dali", reason="needs nvidia-dali")
    return kind


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_both_spellings_and_the_folder_itself_are_found(tree, own_tree):
    for root in (tree.parent, tree, own_tree.parent):
        data = load(root)
        assert data.classes == CLASSES and len(data.train_labels) == 27 and len(data.val.labels) == 12
    assert data.shapes == {"image": (3, SIZE, SIZE)} and data.num_crops is None
    assert load(tree).checksum == load(own_tree).checksum != load(tree, few_ratio=0.5).checksum
    assert dataset_dict["imagenet"](DataOptions(tree)).shapes["image"] == (3, 224, 224)


def test_subsets_of_classes(tree):
    assert load(tree, classes_subset="2").classes == ("n01", "n02")
    data = load(tree, classes_subset="n03,n01")
    assert data.classes == ("n01", "n03") and data.train_labels.bincount().tolist() == [9, 9]
    assert all("n02" not in p for p in data.train.paths)
    for subset, words in (("4", "has 3 classes"), ("n01,n9", "no class n9")):
        with pytest.raises(UserError, match=words):
            load(tree, classes_subset=subset)


def test_held_out_and_few(tree):
    data = load(tree, val_fraction=1 / 3)
    assert data.train_labels.bincount().tolist() == [6] * 3 and data.val.labels.bincount().tolist() == [3] * 3
    assert not set(data.train.paths) & set(data.val.paths) and data.evaluated_on.startswith("held-out")
    assert load(tree, few_ratio=0.34).train_labels.bincount().tolist() == [3] * 3
    with pytest.raises(UserError, match="--few_ratio 0.01 leaves 3 of 3 classes without any training image .*has 9"):
        load(tree, few_ratio=0.01)
    with pytest.raises(UserError, match="--val_fraction 0.01 leaves 3 of 3 classes without any held-out image"):
        load(tree, val_fraction=0.01)


def test_trees_that_do_not_fit_are_refused(own_tree):
    with pytest.raises(UserError, match="no ImageNet in.*imagenet.*ImageNet"):
        load(own_tree / "train")
    shutil.rmtree(own_tree / "val" / "n02")
    with pytest.raises(UserError, match=r"train/ \(3\) and val/ \(2\) hold different classes, only in train/: n02"):
        load(own_tree)


def test_a_flat_val_is_refused_with_the_command_that_sorts_it(own_tree):
    val = own_tree / "val"
    labels = ["ImageId,PredictionString"]
    for image in sorted(val.glob("*/*.JPEG")):
        labels.append(f"{image.stem},{image.parent.name} 1 2 3 4")
        image.rename(val / image.name)
    for folder in val.iterdir():
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(UserError, match="not sorted.*python scripts/sort_imagenet_val.py") as refusal:
        load(own_tree)
    script, folder = str(refusal.value).split("sort them with: python ")[1].split(" --labels")[0].split(" ", 1)
    assert (ROOT / script).is_file() and folder.strip("'") == str(val)
    labels_file = own_tree / "LOC_val_solution.csv"
    labels_file.write_text("\n".join(labels[:-1]))
    with pytest.raises(UserError, match="1 images.*nothing was moved"):
        sort_imagenet_val.main([str(val), "--labels", str(labels_file)])
    labels_file.write_text("\n".join(labels))
    sort_imagenet_val.main([str(val), "--labels", str(labels_file)])
    assert load(own_tree).val.labels.bincount().tolist() == [VAL] * 3


def write_devkit(path, wnids):
    """As the development kit has it: numbers of classes by image, their names, and a group, which is no class."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    kinds = [(1, "n02"), (2, "n03"), (3, "n01"), (4, "n04")]
    synsets = [(number, wnid, f"{wnid}, alias", "said of it", int(number == 4)) for number, wnid in kinds]
    data = path.parent / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": np.array(synsets, [(name, object) for name in fields])})
    numbers = {wnid: number for number, wnid in kinds}
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[w]}\n" for w in wnids))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(data.parent, data.parent.name)


def test_the_development_kit_sorts_a_flat_val(own_tree, tmp_path, monkeypatch):
    val, wnids, colours = own_tree / "val", [], {}
    for i, image in enumerate(sorted(val.glob("*/*.JPEG"), key=lambda p: p.name[::-1]), 1):
        wnids.append(image.parent.name)
        colours[image.rename(val / f"ILSVRC2012_val_{i:08d}.JPEG").name] = wnids[-1]
    for folder in [p for p in val.iterdir() if p.is_dir()]:
        folder.rmdir()
    kit = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    write_devkit(kit, wnids)
    with pytest.raises(UserError, match="is not the published ILSVRC2012_devkit_t12.tar.gz"):
        sort_imagenet_val.main([str(val), "--labels", str(kit)])  # torchvision knows the real one's checksum
    known = torchvision.datasets.imagenet.ARCHIVE_META
    monkeypatch.setitem(known, "devkit", (kit.name, hashlib.md5(kit.read_bytes()).hexdigest()))
    sort_imagenet_val.main([str(val), "--labels", str(kit)])
    assert {p.name: p.parent.name for p in val.glob("*/*")} == colours
    assert load(own_tree).val.labels.bincount().tolist() == [VAL] * 3


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dali", [None, "cpu"])
def test_every_sample_once_an_epoch_with_its_class(tree, dali):
    data = load(tree, dali=dali_or_skip(dali))
    loader = data.train_loader(8, **TRAINING)
    first = list(loader)
    assert [len(b) for b in first] == [8, 8, 8, 3] and len(loader) == 4
    assert sorted(index(first)) == list(range(27)) != index(first)
    for batch in first:
        assert batch.target.tolist() == data.train_labels[batch.index].tolist()
        image = batch.inputs["image"]
        assert image.dtype == torch.float32 and image.is_contiguous(memory_format=torch.channels_last)
        assert image.min() >= 0 and image.max() <= 1 and image.shape[1:] == (3, SIZE, SIZE)
        coloured = image.mean((2, 3)).argmax(1) == batch.target
        grey = (image[:, 0] - image[:, 2]).abs().amax((1, 2)) < 0.02
        assert (coloured | grey).all(), "an image with the label of another"
    again = list(data.train_loader(8, **TRAINING))
    assert torch.equal(images(first), images(again)), "an epoch is a function of seed and epoch"
    loader.set_epoch(2)
    second = list(loader)
    assert index(second) != index(first)
    resumed = data.train_loader(8, **TRAINING)
    resumed.set_epoch(2)
    assert torch.equal(images(list(resumed)), images(second)), "another epoch after a resume"
    resumed.set_epoch(2, 2)
    assert index(list(resumed)) == index(second[2:]), "another order after a resume in mid-epoch"


@pytest.mark.parametrize("dali", [None, "cpu"])
def test_ranks_share_each_global_batch(tree, dali):
    data = load(tree, dali=dali_or_skip(dali))
    whole = list(data.train_loader(8, **TRAINING))
    ranks = [list(data.train_loader(8, rank=r, world_size=2, **TRAINING)) for r in range(2)]
    for k, batch in enumerate(whole):
        mine, other = ranks[0][k], ranks[1][k]
        assert len(mine) == len(other) == len(batch) // 2
        assert index([mine, other]) == batch.index.tolist()[: len(mine) * 2]
    if dali is None:  # workers' views follow the sample, whoever decodes it
        assert torch.equal(images([ranks[0][1], ranks[1][1]]), images([whole[1]]))
    with pytest.raises(UserError, match="cannot be divided among 2"):
        data.train_loader(9, rank=0, world_size=2, **TRAINING)


def test_workers_give_what_one_process_gives(tree):
    alone = list(load(tree).train_loader(8, **TRAINING))
    before = torch.get_rng_state()
    loader = load(tree, num_workers=2).train_loader(8, **TRAINING)
    assert torch.equal(images(list(loader)), images(alone))
    assert torch.equal(torch.get_rng_state(), before), "decoding draws from the generator of the run"
    for i, _ in enumerate(loader):  # left early, as --max_steps does
        if i == 1:
            break
    loader.set_epoch(1, 2)
    assert torch.equal(images(list(loader)), images(alone[2:]))


def test_evaluation_is_exact_and_as_torchvision_does_it(tree):
    data = load(tree)
    shares = [list(data.test_loader(5, device=CPU, rank=r, world_size=5)) for r in range(5)]
    assert [i for share in shares for i in index(share)] == list(range(12))
    batch = shares[1][0]
    with Image.open(data.val.root / data.val.paths[int(batch.index[0])]) as file:
        wanted = v2.CenterCrop(SIZE)(v2.Resize(SIZE * 256 // 224)(file.convert("RGB")))
    assert torch.equal(batch.inputs["image"][0], torch.from_numpy(np.array(wanted)).permute(2, 0, 1) / 255)


def seeded_view(transform, image, seed):
    """The pixels of a view, and the random number that follows it."""
    torch.manual_seed(seed)
    return np.asarray(transform(image)).astype(int), torch.rand(1).item()


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("reduced", [False, True])
def test_training_views_are_those_of_torchvision(tmp_path, kind, reduced):
    """Also with --reduced_decode, if no crop is twice as large as its view."""
    path = tmp_path / f"noise.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)).save(path)
    theirs = v2.Compose([v2.RandomResizedCrop(32, antialias=True), v2.RandomHorizontalFlip()])
    for seed in range(8):
        expected, following = seeded_view(theirs, Image.open(path), seed)
        pixels, then = seeded_view(View(32, reduced=reduced), path, seed)
        assert np.array_equal(pixels, expected) and then == following


# --- --reduced_decode -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph():
    """896 x 640 pixels: photographs side by side."""
    photographs = sorted(shared("imagenette_small").glob("train/*/*.JPEG"))
    whole = Image.new("RGB", (896, 640))
    for i, path in enumerate(photographs[::50][:12]):
        whole.paste(ImageOps.fit(Image.open(path).convert("RGB"), (224, 224)), (i % 4 * 224, i // 4 * 224))
    return whole


@pytest.fixture
def decoded(monkeypatch):
    """Sizes at which JPEG files are decoded."""
    sizes: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def load_and_note(file):
        if file.tile:  # it was not read before
            sizes.append(file.size)
        return load(file)

    monkeypatch.setattr(JpegImageFile, "load", load_and_note)
    return sizes


@pytest.mark.parametrize(
    ("mode", "turned", "sides"),
    [("RGB", 1, (896, 640)), ("L", 1, (893, 637)), ("RGB", 6, (896, 640)), ("CMYK", 3, (892, 636))],
)
def test_large_crops_are_decoded_at_a_reduced_scale(photograph, tmp_path, decoded, mode, turned, sides):
    """The same part of the image: the views differ by far less than by a shift of one pixel."""
    path, exif = tmp_path / "photograph.jpg", Image.Exif()
    exif[0x0112] = turned
    photograph.crop((0, 0, *sides)).convert(mode).save(path, quality=90, exif=exif)
    train, test = ([kind(40, reduced=r) for r in (False, True)] for kind in (View, Centre))
    for whole, reduced, seed in ((*train, 0), (*train, 1), (*train, 2), (*test, 0)):
        pixels, following = seeded_view(whole, path, seed)
        others, then = seeded_view(reduced, path, seed)
        difference = np.abs(others - pixels).mean()
        assert then == following and others.shape == pixels.shape
        assert 0 < difference < min(4, np.abs(np.roll(pixels, 1, 0) - pixels).mean() / 5)
    divisors = [next(s for s in (1, 2, 4, 8) if tuple(-(-side // s) for side in sides) == size) for size in decoded]
    assert set(divisors[::2]) == {1} and set(divisors[1::2]) <= {2, 4, 8}
    assert divisors[-1] == (4 if sides[0] == 892 else 8), "a turned image is divided without remainder"


def test_other_files_are_decoded_whole(photograph, tmp_path):
    photograph.save(tmp_path / "photograph.png")
    for kind in (View, Centre):
        whole, reduced = (seeded_view(kind(40, reduced=r), tmp_path / "photograph.png", 0) for r in (False, True))
        assert np.array_equal(whole[0], reduced[0]) and whole[1] == reduced[1]


def test_runs_at_a_reduced_scale(own_tree, tmp_path):
    """Both loaders take the flag, a checkpoint records it, and DALI, which has no such scale, refuses it."""
    image = own_tree / "train" / "n02" / "n02_3.JPEG"
    with Image.open(image) as file:
        file.resize((300, 240)).save(image)
    victim = own_tree / "val" / "n02" / "n02_3.JPEG"
    shutil.copy(image, victim)
    whole, reduced = load(own_tree), load(own_tree, reduced_decode=True)
    for name, places in (("train_loader", (8,)), ("test_loader", (8,))):
        kwargs = TRAINING if name == "train_loader" else {"device": CPU}
        one, other = (list(getattr(data, name)(*places, **kwargs)) for data in (whole, reduced))
        assert index(one) == index(other)
        differs = (images(one) != images(other)).flatten(1).any(1)
        files = whole.train if name == "train_loader" else whole.val
        assert [files.paths[i] for i, d in zip(index(one), differs, strict=True) if d] == ["n02/n02_3.JPEG"]
    victim.write_bytes(victim.read_bytes()[:900])
    with pytest.raises(UserError, match=r"n02_3\.JPEG' is corrupt.*--skip_corrupt"):
        list(reduced.test_loader(4, device=CPU))
    torch.save({"model": {"w": torch.zeros(1)}, "meta": reduced.described}, tmp_path / "net.pth")
    assert options_as_trained(tmp_path / "net.pth", own_tree).stream.reduced_decode and not whole.described
    with pytest.raises(UserError, match="leave out .*--reduced_decode"):
        load(own_tree, reduced_decode=True, dali=dali_or_skip("cpu")).train_loader(9, **TRAINING)


def test_repeated_augmentation_and_erasing(tree):
    data = load(tree, repeated_augmentation=3, augment="trivialaugment", random_erase=1.0)
    batches = list(data.train_loader(9, **TRAINING))
    assert torch.tensor(index(batches)).bincount().tolist().count(3) == 9 and len(index(batches)) == 27
    first = images(batches)[:3]
    assert not torch.equal(first[0], first[1]), "the copies are of one view"
    loader = load(tree, random_erase=1.0).train_loader(9, **TRAINING)
    assert pickle.dumps(loader.samples), "workers that are spawned, as on macOS, unpickle it"
    erased = images(list(loader))
    colour = torch.tensor([124, 116, 104])[:, None, None] / 255
    assert ((erased - colour).abs().amax(1) < 1e-3).flatten(1).any(1).float().mean() > 0.9
    with pytest.raises(UserError, match="--augment"):
        load(tree, augment="randaugment", dali=dali_or_skip("cpu")).train_loader(9, **TRAINING)


@pytest.mark.parametrize("dali", [None, "cpu"])
def test_a_corrupt_image_is_named_or_counted(own_tree, dali):
    victim = own_tree / "train" / "n02" / "n02_3.JPEG"
    victim.write_bytes(victim.read_bytes()[:150])
    broken = own_tree / "val" / "n01" / "n01_2.JPEG"
    broken.write_bytes(b"nothing")
    dali_or_skip(dali)
    with pytest.raises(UserError, match=r"n02_3\.JPEG' is corrupt.*--skip_corrupt"):
        list(load(own_tree, dali=dali).train_loader(8, **TRAINING))
    data = load(own_tree, dali=dali, skip_corrupt=True)
    loader = data.train_loader(8, **TRAINING)
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(b) for b in batches] == [8, 8, 8, 3]
        assert data.train.paths.index("n02/n02_3.JPEG") not in index(batches)
    assert loader.end_epoch() == {"skipped_images": 1}
    with pytest.raises(UserError, match=r"n01_2\.JPEG' is corrupt"):
        list(load(own_tree).test_loader(4, device=CPU))
    assert len(index(list(data.test_loader(4, device=CPU)))) == 11


def test_dali_that_cannot_run_is_one_sentence(tree, monkeypatch):
    dali_or_skip("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--dali gpu needs a CUDA device"):
            load(tree, dali="gpu").train_loader(8, **TRAINING)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match="needs the package nvidia-dali-cuda120"):
        load(tree, dali="cpu").train_loader(8, **TRAINING)
    assert load(tree).train_loader(8, **TRAINING)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dali", [None, "cpu", "gpu"])
def test_on_a_gpu_the_batches_are_those_of_the_cpu(tree, dali):
    device = torch.device("cuda", 0)
    here = list(load(tree, dali=dali if dali != "gpu" else "cpu").train_loader(8, **TRAINING))
    there = list(load(tree, dali=dali).train_loader(8, **TRAINING | {"device": device}))
    assert index(there) == index(here) and all(b.target.device == device for b in there)
    if dali != "gpu":
        assert torch.equal(images(there).cpu(), images(here))


@pytest.mark.parametrize("dali", [None, "cpu"])
def test_real_photographs(dali):
    data = dataset_dict["imagenet"](data_options(shared("imagenette_small"), image_size=64, dali=dali_or_skip(dali)))
    assert data.num_classes == 10 and len(data.train_labels) == 600 and len(data.val.labels) == 200
    loader = data.train_loader(64, rank=1, world_size=2, **TRAINING)
    batch = next(iter(loader))
    assert len(batch) == 32 and batch.target.tolist() == data.train_labels[batch.index].tolist()
    assert 0.3 < float(batch.inputs["image"].mean()) < 0.6


# --- runs -------------------------------------------------------------------------------------------------------------


def common(tree, root, batch_size):
    argv = ("--dataset", "imagenet", "--data_folder", tree.parent, "--image_size", SIZE, "--batch_size", batch_size)
    return (*argv, "--tb_backend", "none", "--save_root", root)


def test_a_signal_for_the_whole_process_group_spares_the_workers(tree, commands, tmp_path):
    """torchrun and SLURM send SIGTERM to loader workers too; the run ends in good order all the same."""
    argv = (*common(tree, tmp_path, 4), "--num_workers", 2, "--model", "resnet8", "--epochs", 1)
    argv += ("--lr_decay_epochs", "")
    stopped = commands("train_teacher.py", *argv, group_signal=(2, signal.SIGTERM))
    assert stopped.code == 143 and "in epoch 1 after step 2" in stopped.err, (stopped.out, stopped.err)
    assert len(stopped.err.splitlines()) == 1, stopped.err
    assert "at epoch 1, step 3" in commands("train_teacher.py", *argv).finished().out


@pytest.fixture(scope="module")
def tree_teacher(tree, commands, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree_teacher")
    argv = ("--model", "resnet8", "--num_workers", 0, "--epochs", 1, "--lr_decay_epochs", "")
    commands("train_teacher.py", *common(tree, root, 8), *argv).finished()
    return root / "teachers" / "models" / "resnet8_vanilla" / "resnet8_best.pth"


def test_other_pixels_are_another_data_set(tree, tree_teacher, commands, tmp_path):
    """What is remembered of a teacher, its accuracy and its probe, is not that of another scale or size."""
    argv = (*common(tree, tmp_path, 8), "--num_workers", 0, "--max_steps", 1, "--epochs", 1, "--path_t", tree_teacher)
    argv += ("--model_s", "resnet8", "--distill", "kd")
    known, probes = [], []
    for more in ((), (), ("--reduced_decode",), ("--image_size", SIZE // 2)):
        done = commands("train_student.py", *argv, *more, "--trial", len(known)).finished()
        known.append("(measured before)" in done.out)
        done = commands("train_student.py", *argv, *more, "--trial", len(known), "--teacher_probe", "means").finished()
        probes.append("fitting a means probe" in done.out)
    assert known == [False, True, False, False] and probes == [True, False, True, True]


# the batches of DALI, by rank and after a resume, are compared above
@pytest.mark.parametrize("dali", [None, pytest.param("cpu", marks=pytest.mark.slow)])
def test_crd_runs_in_two_processes_and_resumes(tree, tree_teacher, dali, commands, tmp_path):
    dali_or_skip(dali)
    argv = (*common(tree, tmp_path, 8), "--num_workers", 1, "--epochs", 2)
    argv += ("--path_t", tree_teacher, "--model_s", "resnet8", "--distill", "crd", "--nce_k", 8)
    argv += ("--dali", dali) if dali else ("--skip_corrupt",)
    # killed in the second epoch, continued from its beginning
    died = commands("train_student.py", *argv, ranks=2, in_rank=(1, {"signals": [(5, 9)]}), set=AT_ONCE)
    assert died.code == 137 and "another process" in died.err, (died.out, died.err)
    done = commands("train_student.py", *argv, ranks=2).finished()
    (folder,) = (tmp_path / "students" / "models").iterdir()
    assert ("_dali:cpu" in folder.name) == bool(dali) and "continuing from" in done.out
    found = rows_of(folder, TIMING)
    assert [r["epoch"] for r in found] == [1, 2] and ("skipped_images" in found[0]) == (dali is None)
    args = json.loads((folder / "args.json").read_text())
    assert args["settings"]["lr_decay_epochs"] == "30,60,90" and args["settings"]["learning_rate"] == 0.1
    # uninterrupted, the same numbers
    again = commands("train_student.py", *argv, "--overwrite", ranks=2).finished()
    assert "continuing" not in again.out
    assert rows_of(folder, TIMING) == found


def test_hsakd_teacher_student_and_peers(tree, commands, tmp_path):
    """The same flags as for CIFAR: a teacher with heads, its student, two peers; images are decoded as read."""
    argv = (*common(tree, tmp_path, 8), "--num_workers", 0, "--epochs", 1, "--max_steps", 2, "--lr_decay_epochs", "")
    commands("train_teacher.py", *argv, "--model", "resnet8_aux", "--distill", "hsakd_teacher").finished()
    teacher = next((tmp_path / "teachers" / "models").glob("*_trial_0*")) / "resnet8_aux_last.pth"
    student = ("train_student.py", *argv, "--model_s", "resnet8_aux", "--distill")
    commands(*student, "hsakd", "--path_t", teacher).finished()
    commands(*student, "hsakd_online").finished()
    found = {
        f.name.split("_imagenet_")[1].split("_r:")[0]: rows_of(f)[-1]
        for f in (tmp_path / "students" / "models").iterdir()
    }
    assert found.keys() == {"hsakd", "hsakd_online"} and found["hsakd"]["train_hsakd"] > 0
    assert {"test_acc", "test_acc_peer", "train_peer_cls"} <= found["hsakd_online"].keys()
