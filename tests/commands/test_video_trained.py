"""A network of videos is looked at as it was trained; what reads its clips; and mistakes that are nobody's bad file."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from core.protocols import UserError
from dataset.base import UnlabelledConfig
from dataset.clips.decode import ClipSource
from dataset.clips.frame_reader import FrameReader
from dataset.clips.lists import read_entries
from dataset.clips.views import TestViews
from dataset.images.unlabelled import with_unlabelled
from helper.deploy.as_trained import clip_settings_notice, options_as_trained
from helper.networks.checkpoint import read_checkpoint
from tests.dataset.test_video import CPU, load, write_video
from tests.support.packages import need


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        write_video(root / f"{i}.avi", 8 + i)
    (root / "train.txt").write_text("".join(f"{i}.avi {i % 2}\n" for i in range(4)))
    (root / "test.txt").write_text("4.avi 0\n5.avi 1\n")
    return root


@pytest.fixture(scope="module")
def network(videos, commands, tmp_path_factory):
    """A tsm:resnet8 of 4 frames of 32 px."""
    root = tmp_path_factory.mktemp("save")
    data = ("--dataset", "video", "--data_folder", videos, "--image_size", 32, "--short_side", 40, "--num_segments", 4)
    run = ("--num_workers", 0, "--batch_size", 4, "--epochs", 1, "--tb_backend", "none", "--save_root", root)
    commands("train_teacher.py", "--model", "tsm:resnet8", *data, *run, "--sampling", "dense").finished()
    (best,) = root.rglob("*_best.pth")
    return best


def test_a_checkpoint_of_videos_says_how_its_clips_were_made(network, videos):
    meta = read_checkpoint(network).meta
    assert (meta["shapes"], meta["sampling"], meta["short_side"]) == ({"video": [4, 3, 32, 32]}, "dense", 40)
    found = options_as_trained(network, videos, sampling=None, short_side=None, seek=True)
    assert (found.recordings.num_segments, found.image_size) == (4, 32)
    assert (found.video.sampling, found.video.short_side, found.video.seek) == ("dense", 40, True)
    assert clip_settings_notice(network, found) == "as trained: 4 frames of 32 px, dense sampling, shorter side 40"
    other = options_as_trained(network, videos, 64, num_segments=7, sampling="uniform", short_side=None)
    assert (other.video.sampling, other.video.short_side) == (
        "uniform",
        None,
    )  # the side of frames goes with that of crops
    told = clip_settings_notice(network, other)
    assert all(f"{flag} (trained with {was})" in told for flag, was in (
        ("--num_segments 7", 4), ("--image_size 64", 32), ("--sampling uniform", "dense")
    ))  # fmt: skip


def test_videos_without_labels(network, videos, commands, tmp_path):
    """Half of each batch; clips are read as those of the list, and a file that is no video is passed over."""
    more = tmp_path / "more"
    for i, place in enumerate((more, more / "deep", more / "deep")):
        place.mkdir(exist_ok=True)
        write_video(place / f"{i}.MP4", 9)
    (more / "notes.txt").write_text("no video")
    settings = UnlabelledConfig(str(more), 0.5)
    both = with_unlabelled(load(videos), settings)
    assert both.num_crops is None and both.videos and both.train_labels.tolist() == [0, 1, 0, 1, -1, -1, -1]
    loader = both.train_loader(4, seed=0, device=CPU)
    assert len(loader) == 2  # four labelled clips in twos
    for batch in loader:
        assert batch.labelled == 2 and batch.inputs["video"].shape == (4, 4, 3, 16, 16)
        assert batch.target[2:].tolist() == [-1, -1] and (batch.index[2:] >= 4).all()
    loader.set_epoch(1, 1)
    assert torch.equal(next(iter(loader)).inputs["video"], batch.inputs["video"])
    (torn := more / "torn.mp4").write_bytes(b"garbage")
    loader = with_unlabelled(load(videos, skip_corrupt=True), settings).train_loader(4, seed=0, device=CPU)
    assert len(list(loader)) == 2 and loader.end_epoch() == {"skipped_clips": 1}
    torn.unlink()
    data = ("--dataset", "video", "--data_folder", videos, "--image_size", 32, "--short_side", 40, "--num_segments", 4)
    run = ("--num_workers", 0, "--batch_size", 4, "--epochs", 1, "--tb_backend", "none", "--save_root", tmp_path)
    argv = ("--model_s", "tsm:resnet8", "--path_t", network, "--distill", "kd", "--sampling", "dense", *data, *run)
    done = commands("train_student.py", *argv, "--unlabelled", more).finished()
    assert "4 videos with labels and 3 without; 0.5 of each batch has labels" in done.out
    (more / "empty").mkdir()
    commands("train_student.py", *argv, "--unlabelled", more / "empty").refused("holds no video")


def test_every_script_looks_at_it_as_it_was_trained(network, videos, commands, tmp_path):
    plain = ("--path", network, "--dataset", "video", "--data_folder", videos)
    out = commands("test_model.py", *plain, "--num_workers", 0).finished().out
    assert "as trained: 4 frames of 32 px, dense sampling" in out and "warning" not in out
    lists = ("--train_list", videos / "train.txt", "--test_list", videos / "test.txt")
    out = commands("test_model.py", *plain, *lists, "--num_workers", 0, "--short_side", 32).finished().out
    assert "--short_side 32 (trained with 40)" in out
    mistaken = (*plain, "--num_workers", 0, "--sampling", "uniform", "--clips", 4, "--skip_corrupt")
    commands("test_model.py", *mistaken).refused("--clips 4 needs --sampling dense")
    pytest.importorskip("matplotlib", reason="needs matplotlib, of requirements-extra.txt")
    commands("scripts/plot.py", "reliability", *plain, *lists, "--out", tmp_path / "r.png").finished()
    assert (tmp_path / "r.png").stat().st_size


def test_the_lists_of_training_travel(videos, commands, tmp_path):
    """A checkpoint knows the lists that were named; where they lie elsewhere now, the data folder is looked into."""
    videos = shutil.copytree(videos, tmp_path / "clips")
    for part in ("train", "test"):
        (videos / f"{part}.txt").rename(tmp_path / f"{part}.lst")
    data = ("--dataset", "video", "--data_folder", videos, "--image_size", 16, "--num_segments", 2)
    lists = ("--train_list", tmp_path / "train.lst", "--test_list", tmp_path / "test.lst")
    run = ("--num_workers", 0, "--batch_size", 4, "--epochs", 1, "--tb_backend", "none", "--save_root", tmp_path)
    commands("train_teacher.py", "--model", "tsm:resnet8", *data, *lists, *run).finished()
    (best,) = tmp_path.rglob("*_best.pth")
    plain = ("--path", best, "--data_folder", videos, "--num_workers", 0)
    tested = commands("test_model.py", *plain).finished().out
    assert f"as in training: --test_list {tmp_path / 'test.lst'}" in tested and "2 samples" in tested
    argv = (*plain, "--forms", "safetensors", "--images", 2, "--out", tmp_path / "export")
    assert "as in training: --train_list" in commands("scripts/export_student.py", *argv).finished().out
    argv = ("reliability", *plain, "--out", tmp_path / "plot.png")
    assert "as in training: --test_list" in commands("scripts/plot.py", *argv).finished().out
    for part in ("train", "test"):
        (tmp_path / f"{part}.lst").rename(videos / f"{part}.txt")
    out = commands("test_model.py", *plain).finished().out
    assert "test.lst, does not exist: the list in the data folder is read" in out and "2 samples" in out


def test_a_network_of_videos_is_taken_away(network, videos, tmp_path, capsys, quick_export):
    need("onnx", "onnxscript", "onnxruntime")
    from scripts.export_student import main

    plain = ["--path", str(network), "--dataset", "video", "--data_folder", str(videos), "--out", str(tmp_path)]
    main([*plain, "--test_list", str(videos / "test.txt"), "--forms", "onnx"])
    assert "as trained: 4 frames" in (said := capsys.readouterr().out) and said.count("agree to") == 1
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["input_shape"]) == ("tsm:resnet8", [4, 3, 32, 32])


# --- mistakes of the command line -------------------------------------------------------------------------------------


def test_skipping_bad_files_hides_no_mistake(videos, tmp_path):
    for options in ({}, {"skip_corrupt": True}):
        data = load(videos, short_side=16, **options)
        for views, words in (
            (TestViews(clips=4), "--clips 4 needs --sampling dense"),
            (TestViews(clips=0), "--clips 0"),
            (TestViews(crops="three", size=12), "use --crop_size 16, as published, or --short_side 12"),
            (TestViews(crops="ten", size=20), "--short_side 20 or more"),
        ):
            with pytest.raises(UserError, match=words):
                data.test_loader(4, device=CPU, views=views)
    (tmp_path / "file").write_text("")
    full = load(videos, skip_corrupt=True, frame_cache=tmp_path / "file")
    with pytest.raises(UserError, match="point --frame_cache at"):
        list(full.test_loader(2, device=CPU))


def test_a_file_listed_as_a_folder(videos, tmp_path):
    (tmp_path / "list.txt").write_text("0.avi 1\n1.avi 3 5\n")
    with pytest.raises(UserError, match=r"line 2: '1.avi' is a file, but a line with frames names a folder"):
        read_entries(tmp_path / "list.txt", videos)


# --- another decoder --------------------------------------------------------------------------------------------------


def test_opencv_reads_the_same_frames(videos, tmp_path):
    pytest.importorskip("cv2", reason="needs opencv-python-headless, of requirements-extra.txt")
    path = write_video(tmp_path / "a.mp4", 23)
    source, index = ClipSource(path), [22, 3, 3, 9, 0, 15]
    ours, theirs = FrameReader(32), FrameReader(32, decoder="opencv")
    assert theirs.count(source) == ours.count(source) == 23
    wanted, got = ours.read(source, index).astype(int), theirs.read(source, index).astype(int)
    assert wanted.shape == got.shape and np.abs(wanted - got).mean() < 1 and np.abs(wanted - got).max() < 16
    assert got[0, 16, :, 0].max() > got[0, 16, :, 2].max() + 50  # the bright column is red, not blue

    cached = {d: FrameReader(32, tmp_path / "cache", decoder=d) for d in ("av", "opencv")}
    assert [r.count(source) for r in cached.values()] == [23, 23]
    assert np.array_equal(cached["opencv"].read(source, index), got)
    assert np.array_equal(cached["av"].read(source, index), wanted)
    assert len(list((tmp_path / "cache").glob("bilinear_*.npy"))) == 2

    data = load(videos, decoder="opencv")
    assert next(iter(data.test_loader(2, device=CPU))).inputs["video"].shape == (2, 4, 3, 16, 16)
    assert data.checksum != load(videos).checksum
    for name, content, words in (("empty.avi", b"", "empty"), ("text.avi", b"no video" * 99, "OpenCV cannot open it")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            theirs.count(ClipSource(tmp_path / name))
    with pytest.raises(UserError, match="--seek works with PyAV"):
        load(videos, decoder="opencv", seek=True)


def test_opencv_is_optional(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="needs the package opencv-python-headless: pip install"):
        FrameReader(16, decoder="opencv").count(ClipSource(videos / "0.avi"))
    data = load(videos, skip_corrupt=True, decoder="opencv")
    with pytest.raises(UserError, match="opencv-python-headless"):  # nobody's bad file
        list(data.test_loader(2, device=torch.device("cpu")))
