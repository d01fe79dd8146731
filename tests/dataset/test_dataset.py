"""Data sets and loaders: views against a per-image reference, determinism, resuming, sharding, bad input."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.protocols import UserError
from dataset import base, dataset_dict, recipe
from dataset.base import DataOptions, stratified
from dataset.images import files, folder
from dataset.images.resident import ResidentData, Split, resize, view

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def make(count: int = 203, size: int = 32, flips: bool = True, classes: int = 7, channels: int = 3) -> ResidentData:
    rng = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=rng)
    labels = torch.arange(count) % classes
    names = [f"class{c}" for c in range(classes)]
    return ResidentData("toy", names, Split(images, labels), Split(images[:53], labels[:53]), flips=flips)


def loader(data: ResidentData, batch_size: int = 64, **options):
    return data.train_loader(batch_size, **{"seed": 0, "device": CPU, **options})


def same(a, b) -> bool:
    return (
        torch.equal(a.inputs["image"], b.inputs["image"])
        and torch.equal(a.target, b.target)
        and torch.equal(a.index, b.index)
        and torch.equal(a.crop, b.crop)
    )


def gathered(batches) -> tuple[torch.Tensor, ...]:
    """(image, target, index, crop) of many batches, end to end."""
    batches = list(batches)
    return (
        torch.cat([b.inputs["image"] for b in batches]),
        torch.cat([b.target for b in batches]),
        torch.cat([b.index for b in batches]),
        torch.cat([b.crop for b in batches]),
    )


# --- pixel views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, flips, channels", [(32, True, 3), (32, False, 3), (64, True, 1), (20, True, 3)])
def test_view_equals_pad_crop_flip_totensor_per_image(size, flips, channels):
    functional = pytest.importorskip("torchvision.transforms.functional")
    data = make(9, size, flips, channels=channels)
    pad = size // 8
    assert data.pad == pad and data.num_crops == (2 * pad + 1) ** 2 * 2
    crop = torch.arange(data.num_crops)
    index = crop % 9
    got = data.views(index, crop)
    for k in range(data.num_crops):
        flip, shift = k % 2, k // 2
        dy, dx = divmod(shift, 2 * pad + 1)
        pixels = data.train_images[index[k]].numpy()
        image = functional.pad(Image.fromarray(pixels if channels == 3 else pixels[..., 0]), pad, fill=0)
        image = functional.crop(image, dy, dx, size, size)
        image = functional.hflip(image) if flip else image
        assert torch.equal(got[k], functional.to_tensor(image)), (dy, dx, flip)


def test_162_views_at_32_pixels_and_the_centre_is_the_image_itself():
    for flips in (True, False):
        data = make(flips=flips)
        assert data.num_crops == 162
    centre = torch.full((203,), (4 * 9 + 4) * 2)
    plain = data.train_images.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(data.views(torch.arange(203), centre), plain)


def test_a_batch_is_what_the_protocol_says_and_view_renders_it_bit_for_bit():
    data = make()
    for batch in loader(data):
        image = batch.inputs["image"]
        assert image.dtype == torch.float32 and image.shape[1:] == data.shapes["image"] == (3, 32, 32)
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert image.min() >= 0 and image.max() <= 1 and batch.views == 1
        assert batch.target.dtype == batch.index.dtype == batch.crop.dtype == torch.int64
        assert torch.equal(batch.target, data.train_labels[batch.index])
        assert torch.equal(view(data.padded, batch.index, batch.crop, data.pad), image)
        assert torch.equal(data.views(batch.index, batch.crop), image)


def test_crops_are_drawn_per_sample_cover_the_range_and_flip_half():
    crops = gathered(loader(make(8192, classes=2)))[3]
    assert crops.unique().tolist() == list(range(162))
    assert abs((crops % 2).float().mean() - 0.5) < 0.02  # 3.6 standard deviations
    assert all(len(chunk.unique()) > 40 for chunk in crops.split(64))  # within one batch


def test_without_flips_the_flip_bit_is_zero_and_crops_still_vary():
    crops = gathered(loader(make(1000, size=16, flips=False)))[3]
    assert (crops % 2 == 0).all() and (crops // 2).unique().tolist() == list(range(25))


# --- order, determinism, resuming -------------------------------------------------------------------------------------


def test_every_sample_once_per_epoch_and_another_order_and_crops_each_epoch_and_seed():
    data = make()
    epoch = loader(data)
    runs = []
    for number in (1, 2):
        epoch.set_epoch(number)
        runs.append(gathered(epoch))
    runs.append(gathered(loader(data, seed=1)))
    for _, _, index, _ in runs:
        assert index.sort().values.tolist() == list(range(203))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(runs[a][2], runs[b][2]) and not torch.equal(runs[a][3], runs[b][3])


def test_order_is_a_function_of_seed_and_epoch_whatever_was_drawn_before():
    data = make()
    one = loader(data, seed=5)
    for number in (1, 2, 3):
        one.set_epoch(number)
        torch.rand(3)  # the global generator plays no part
        third = list(one)
    other = loader(data, seed=5)
    other.set_epoch(3)
    assert all(same(a, b) for a, b in zip(third, other, strict=True))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(data))
    assert torch.equal(before, torch.get_rng_state())


def test_views_do_not_depend_on_the_batch_size():
    data = make()
    whole = gathered(loader(data, 203))
    for batch_size in (1, 10, 64):
        assert all(torch.equal(a, b) for a, b in zip(whole, gathered(loader(data, batch_size)), strict=True))


def test_resuming_in_mid_epoch_yields_the_same_batches():
    data = make()
    whole = loader(data, 20)
    whole.set_epoch(4)
    expected = list(whole)
    for start in (0, 1, 7, len(expected)):
        resumed = loader(data, 20)
        resumed.set_epoch(4, start)
        rest = list(resumed)
        assert len(rest) == len(expected) - start and len(resumed) == len(expected)
        assert all(same(a, b) for a, b in zip(rest, expected[start:], strict=True))
        assert len(list(resumed)) == len(expected), "iterated again, an epoch is whole"


def test_drop_last_and_lengths():
    data = make()
    for drop_last, sizes in ((False, [64, 64, 64, 11]), (True, [64, 64, 64])):
        batches = loader(data, 64, drop_last=drop_last)
        assert len(batches) == len(sizes) and [len(b) for b in batches] == sizes
    exact = loader(make(128), 64)
    assert [len(b) for b in exact] == [64, 64]


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [203, 193, 192])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_cut_each_global_batch(count, world_size):
    data = make(count)
    whole = list(loader(data))
    parts = [list(loader(data, rank=rank, world_size=world_size)) for rank in range(world_size)]
    left = count % 64
    kept = whole if left == 0 or left >= world_size else whole[:-1]
    for step, batch in enumerate(kept):
        shards = [part[step] for part in parts]
        assert {len(shard) for shard in shards} == {len(batch) // world_size} and len(shards[0])
        cut = len(batch) - len(batch) % world_size  # of a short last batch, what all can share
        assert all(torch.equal(a, b[:cut]) for a, b in zip(gathered(shards), gathered([batch]), strict=True))
    assert all(len(part) == len(kept) == len(loader(data, world_size=world_size)) for part in parts)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch_size 64 cannot be divided among 3 processes"):
        loader(make(), world_size=3)


@pytest.mark.parametrize("batch_size", [0, -1, 204])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(UserError, match=f"batch_size is {batch_size}, but the training set has 203 images"):
        loader(make(), batch_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 60])
def test_test_loader_is_exact_in_order_and_unaugmented(world_size):
    data = make()
    seen = [
        batch
        for rank in range(world_size)
        for batch in data.test_loader(16, device=CPU, rank=rank, world_size=world_size)
    ]
    assert torch.cat([b.index for b in seen]).tolist() == list(range(53))
    assert torch.equal(torch.cat([b.target for b in seen]), data.test.labels)
    plain = data.test.images.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(torch.cat([b.inputs["image"] for b in seen]), plain)
    assert all(len(b) > 0 and b.crop is None for b in seen)
    assert all(b.inputs["image"].is_contiguous(memory_format=torch.channels_last) for b in seen)
    assert len(data.test_loader(1000, device=CPU)) == 1


# --- the set ----------------------------------------------------------------------------------------------------------


def test_checksum_sees_pixels_labels_and_shape():
    data = make()
    assert len(data.checksum) == 16 and int(data.checksum, 16) >= 0
    assert make().checksum == data.checksum
    names, test = data.classes, data.test
    images, labels = data.train_images.clone(), data.train_labels.clone()
    touched = images.clone()
    touched[100, 5, 5, 0] ^= 1
    swapped = labels.clone()
    swapped[3] = (swapped[3] + 1) % 7
    others = [Split(touched, labels), Split(images, swapped), Split(images[:-1], labels[:-1])]
    sums = {ResidentData("toy", names, train, test, flips=True).checksum for train in others}
    assert len(sums) == 3 and data.checksum not in sums
    assert ResidentData("toy", names, Split(images, labels), test, flips=False).checksum == data.checksum


def test_stratified_choice_is_balanced_fixed_and_nested():
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 20)
    half, quarter = stratified(labels, 0.5, 3), stratified(labels, 0.25, 3)
    assert labels[half].bincount().tolist() == [50, 30, 10] and labels[quarter].bincount().tolist() == [25, 15, 5]
    assert set(quarter.tolist()) < set(half.tolist()) and half.tolist() == sorted(half.tolist())
    assert not torch.equal(stratified(labels, 0.5, 4), half)


def test_resize_keeps_flat_colour_and_own_size():
    flat = torch.full((2, 8, 8, 3), 200, dtype=torch.uint8)
    assert resize(flat, 8) is flat
    assert (resize(flat, 32) == 200).all() and resize(flat, 4).shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"val_fraction": 1.0}, {"val_fraction": -0.1}, {"few_ratio": 0.0}, {"few_ratio": 1.5}]
)
def test_options_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}.* {value}"):
        DataOptions(Path("."), **wrong)


# --- registry and recipes ---------------------------------------------------------------------------------------------


def test_registry_names_and_near_misses():
    images = {"cifar100", "cifar10", "folder", "digits", "imagenet", "stl10", "tinyimagenet", "unlabelled"}
    actions = {"utd_mhad", "berkeley_mhad", "mmact"}
    assert set(dataset_dict) == images | actions | {"kinetics400", "video"}
    assert all(callable(dataset_dict[name]) for name in dataset_dict)
    for lookup in (dataset_dict.__getitem__, recipe):
        with pytest.raises(UserError, match="Did you mean cifar100"):
            lookup("cifar-100")


def test_recipes_are_the_published_ones():
    small = {
        "batch_size": 64,
        "epochs": 240,
        "learning_rate": 0.05,
        "lr_decay_epochs": "150,180,210",
        "weight_decay": 5e-4,
    }
    assert all(recipe(name) == small for name in ("cifar100", "cifar10", "folder", "digits"))
    assert (
        recipe("kinetics400")
        == recipe("video")
        == {
            "batch_size": 128,
            "epochs": 100,
            "learning_rate": 0.02,
            "lr_decay_epochs": "40,80",
            "weight_decay": 2e-5,
        }
    )
    assert recipe("imagenet") == {
        "batch_size": 256,
        "epochs": 120,
        "learning_rate": 0.1,
        "lr_decay_epochs": "30,60,90",
        "weight_decay": 1e-4,
    }


def test_imagenet_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no ImageNet in.*--data_folder"):
        dataset_dict["imagenet"](DataOptions(tmp_path))


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ResidentData:
    pytest.importorskip("sklearn", reason="digits comes with scikit-learn")
    return dataset_dict["digits"](DataOptions(Path("nowhere")))


def test_digits_split_is_stratified_and_fixed(digits):
    assert len(digits.train_labels) == 1437 and len(digits.test) == 360
    assert digits.num_classes == 10 and digits.shapes["image"] == (3, 32, 32) and digits.num_crops == 162
    train, test = digits.train_labels.bincount(), digits.test.labels.bincount()
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert ((test / (train + test)) - 360 / 1797).abs().max() < 0.004
    again = dataset_dict["digits"](DataOptions(Path("nowhere"), seed=9))
    assert again.checksum == digits.checksum and torch.equal(again.test.images, digits.test.images)


def test_digits_are_the_8x8_images_and_never_flipped(digits):
    from sklearn.datasets import load_digits

    small = dataset_dict["digits"](DataOptions(Path("nowhere"), image_size=8))
    published = {(image * 255 / 16).round().astype(np.uint8).tobytes() for image in load_digits().images}
    both = torch.cat([small.train_images, small.test.images])
    assert {image[..., 0].numpy().tobytes() for image in both} == published
    assert torch.equal(both[..., 0], both[..., 2]) and both.max() == 255 and both.min() == 0
    assert (gathered(digits.train_loader(64, seed=0, device=CPU))[3] % 2 == 0).all()


def test_held_out_slice_replaces_the_test_set_whatever_the_seed(digits):
    a, b = (dataset_dict["digits"](DataOptions(Path("nowhere"), val_fraction=0.1, seed=seed)) for seed in (0, 1))
    assert torch.equal(a.test.images, b.test.images) and a.checksum == b.checksum != digits.checksum
    assert len(a.train_labels) + len(a.test) == 1437 and a.evaluated_on != digits.evaluated_on == "test"
    everything = sorted(image.numpy().tobytes() for image in digits.train_images)
    assert sorted(i.numpy().tobytes() for part in (a.train_images, a.test.images) for i in part) == everything
    assert (a.test.labels.bincount() - digits.train_labels.bincount() * 0.1).abs().max() <= 0.5


def test_few_ratio_keeps_a_stratified_part_fixed_by_the_seed(digits):
    a, b, c = (dataset_dict["digits"](DataOptions(Path("nowhere"), few_ratio=0.25, seed=seed)) for seed in (0, 0, 1))
    assert a.checksum == b.checksum != c.checksum
    assert (a.train_labels.bincount() - digits.train_labels.bincount() * 0.25).abs().max() <= 0.5
    assert torch.equal(a.test.images, digits.test.images)
    with pytest.raises(UserError, match="few_ratio 0.001 leaves 10 of 10 classes without any training image"):
        dataset_dict["digits"](DataOptions(Path("nowhere"), few_ratio=0.001))
    with pytest.raises(UserError, match="val_fraction 0.001 leaves 10 of 10 classes without any held-out image"):
        dataset_dict["digits"](DataOptions(Path("nowhere"), val_fraction=0.001))


def test_missing_optional_package_is_one_sentence(monkeypatch, tmp_path):
    for missing in ("sklearn.datasets", "torchvision", "PIL.Image"):
        monkeypatch.setitem(sys.modules, missing, None)
    for name, package in (("digits", "scikit-learn"), ("cifar100", "torchvision")):
        with pytest.raises(UserError, match=package):
            dataset_dict[name](DataOptions(tmp_path))
    monkeypatch.setattr(files, "pillow", files.pillow.__wrapped__)  # which remembers that it was there
    with pytest.raises(UserError, match="Pillow"):
        folder.decode(tmp_path / "a.png", 32)


def test_available_memory_is_plausible():
    memory = base.free()
    assert 2**24 < memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_pixels_are_those_of_the_cpu_and_a_step_never_waits():
    data = make()
    device = torch.device("cuda")
    batches = loader(data, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, loader(data), strict=True):
        assert a.inputs["image"].is_cuda and torch.equal(a.inputs["image"].cpu(), b.inputs["image"])
        assert torch.equal(a.index.cpu(), b.index) and torch.equal(a.crop.cpu(), b.crop)
