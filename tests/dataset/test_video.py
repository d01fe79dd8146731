"""Video data: sampling against published indices, crops, readers that agree pixel by pixel, lists, loaders."""

import collections
import contextlib
import dataclasses
import errno
import os
import pickle
import types
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from core.log import log
from core.option import Around
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions, SourceConfig, StreamConfig, data_options
from dataset.clips import clip_transforms as ct
from dataset.clips.decode import ClipSource
from dataset.clips.frame_cache import FrameCache
from dataset.clips.frame_reader import FrameReader, layout
from dataset.clips.frame_sampling import dense_frames, sample_frames
from dataset.clips.lists import Entry, read_entries
from dataset.clips.video import VideoData
from dataset.clips.views import ClipSettings, TestViews
from helper.evaluation.evaluate import average_views, evaluate_views, mean_class_accuracy
from tests.golden.rule import rand
from tests.support.shared import shared

CPU = torch.device("cpu")


def real_clips():
    return sorted(shared("action_clips").iterdir())


def write_video(path, frames, size=(48, 32), codec="mpeg4", gop=4):
    """Frame i has a bright column that walks to the right, and its own grey level."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 + 5 * i, np.uint8)
            pixels[:, (4 * i) % size[0] : (4 * i) % size[0] + 4] = (250, 60, 10)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos of two classes, and the lists of them."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_video(root / f"clip {i}.mp4", 10 + i)
    (root / "train.txt").write_text("".join(f"clip {i}.mp4 {i % 2}\n" for i in range(4)))
    (root / "test.txt").write_text("clip 4.mp4 0\nclip 5.mp4 1\n")
    return root


def load(root, name="video", **options):
    return dataset_dict[name](data_options(root, image_size=16, num_segments=4, **options))


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "settings", "want"),
    [
        (300, 8, {}, [18, 56, 93, 131, 168, 206, 243, 281]),
        (5, 8, {}, [0, 0, 1, 2, 2, 3, 4, 4]),
        (250, 25, {}, list(range(5, 250, 10))),
        (16, 4, {"twice": True}, [2, 6, 10, 14, 0, 4, 8, 12]),
    ],
)
def test_golden_sampling_in_evaluation(n, k, settings, want):
    assert sample_frames(n, k, **settings).tolist() == want


def test_golden_dense_sampling():
    index = dense_frames(300, 8).reshape(10, 8)
    assert index[0, 0] == 0
    assert index[1].tolist() == [26 + 8 * i for i in range(8)]
    assert index[-1, [0, -1]].tolist() == [236, 292]
    assert dense_frames(30, 8).reshape(10, 8).tolist() == [[(8 * i) % 30 for i in range(8)]] * 10


def draws(n, k, times=400, **settings):
    rng = np.random.default_rng(0)
    return np.stack([sample_frames(n, k, rng=rng, **settings) for _ in range(times)])


def test_training_samples_one_frame_of_every_segment():
    seen = draws(83, 8)  # segments of 83 // 8 = 10 frames
    for segment in range(8):
        assert set(seen[:, segment]) == set(range(10 * segment, 10 * segment + 10))


def test_training_on_short_clips():
    assert (draws(9, 8) == np.arange(8)).all()  # segments of one frame
    assert draws(5, 8, times=2).tolist() == [[0, 1, 1, 2, 2, 3, 4, 4]] * 2  # round half to even of i * 5 / 8
    with pytest.raises(UserError, match="without frames"):
        sample_frames(0, 8)


def test_dense_training():
    rng = np.random.default_rng(0)
    starts = {dense_frames(100, 8, rng)[0] for _ in range(500)}
    assert starts == set(range(36))  # of 37 positions the last is never drawn, as published
    assert dense_frames(60, 8, rng).tolist() == [(8 * i) % 60 for i in range(8)]


# --- crops ------------------------------------------------------------------------------------------------------------


def test_multiscale_crop():
    sizes = ct.multiscale_sizes(256, 340, 224)
    assert len(sizes) == 10 and {w for w, _ in sizes} == {256, 224, 192, 168}
    assert all(abs([256, 224, 192, 168].index(w) - [256, 224, 192, 168].index(h)) <= 1 for w, h in sizes)
    assert {side for pair in ct.multiscale_sizes(258, 300, 224) for side in pair} == {258, 224, 193, 170}  # 225 snaps
    rng = np.random.default_rng(0)
    boxes = {p: collections.Counter(ct.multiscale_crop(256, 340, 224, p, rng) for _ in range(3000)) for p in (5, 13)}
    whole = {p: {b[:2] for b in boxes[p] if b[2:] == (192, 192)} for p in (5, 13)}
    assert whole[5] == {(0, 0), (0, 148), (64, 0), (64, 148), (32, 74)}
    edges = {(32, 0), (32, 148), (64, 74), (0, 74)}
    assert whole[13] == whole[5] | edges | {(16, 37), (16, 111), (48, 37), (48, 111)}
    assert all(t + h <= 256 and left + w <= 340 for t, left, h, w in boxes[13])


def test_random_resized_crop():
    rng = np.random.default_rng(0)
    boxes = [ct.random_resized_crop(256, 340, rng) for _ in range(500)]
    assert all(t >= 0 and left >= 0 and t + h <= 256 and left + w <= 340 for t, left, h, w in boxes)
    shares = [h * w / 256 / 340 for *_, h, w in boxes]
    assert 0.07 < min(shares) < 0.12 and 0.8 < max(shares) <= 1
    assert all(0.72 < w / h < 1.39 for *_, h, w in boxes)
    assert ct.random_resized_crop(4, 400, rng) == (0, 198, 4, 4)  # no attempt fits: the central square


def test_three_and_ten_crops():
    assert ct.three_crops(256, 341, 256) == [(0, 0, 256, 256), (0, 84, 256, 256), (0, 42, 256, 256)]
    assert ct.three_crops(300, 256, 256) == [(0, 0, 256, 256), (44, 0, 256, 256), (22, 0, 256, 256)]
    with pytest.raises(UserError, match="--short_side 224"):
        ct.three_crops(256, 340, 224)
    ten = ct.ten_crops(256, 340, 224)
    assert [b[:2] for b, m in ten if not m] == [(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)]
    assert [m for _, m in ten] == [False, True] * 5
    with pytest.raises(UserError, match="--short_side 300"):
        ct.ten_crops(256, 340, 300)
    assert ct.centre_box(256, 341, 224) == (16, 58, 224, 224)
    assert ct.short_side_size(240, 320, 256) == (256, 341)


def test_flip_exchanges_directions():
    pairs = ct.flip_pairs("86:87,93:94")
    clip = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    flipped, label = ct.mirrored(clip, 87, pairs)
    assert flipped.flatten().tolist() == [2, 1, 0, 5, 4, 3] and label == 86
    assert ct.mirrored(clip, 5, pairs)[1] == 5
    for text, words in (("86-87", "must have the form"), ("1:2,2:3", "class 2 twice"), ("4:4", "class 4 twice")):
        with pytest.raises(UserError, match=words):
            ct.flip_pairs(text)


def test_resize_without_antialiasing_is_bilinear_at_pixel_centres():
    """Down by two: the mean of the two middle pixels of each axis, as OpenCV has it, and not of a wider window."""
    clip = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 3
    out = ct.resize(clip, 2, 2)[0, 0].float()
    rows = clip[0, 0].float()
    want = torch.stack([rows[1:3], rows[5:7]]).mean(1)[:, [1, 2, 5, 6]].view(2, 2, 2).mean(2)
    assert (out - want).abs().max() <= 1


# --- readers ----------------------------------------------------------------------------------------------------------


def same_pixels(path, tmp_path, index=None, cached=True):
    """In order, by seeking and from the cache: (frames, count)."""
    source = ClipSource(path)
    plain = FrameReader(64)
    count = plain.count(source)
    index = [*sample_frames(count, 8), 0, count - 1] if index is None else index
    frames = plain.read(source, index)
    assert np.array_equal(FrameReader(64, seek=True).read(source, index), frames), path
    if cached:
        reader = FrameReader(64, cache=tmp_path)
        assert reader.count(source) == count, path
        assert np.array_equal(np.broadcast_to(reader.read(source, index), frames.shape), frames), path
    return frames, count


def test_three_ways_of_reading_agree(tmp_path):
    path = write_video(tmp_path / "a.mp4", 23, codec="mpeg4")
    frames, count = same_pixels(path, tmp_path, [22, 3, 3, 9, 0, 15, 16])
    assert count == 23 and frames.shape == (7, 64, 96, 3)
    assert np.array_equal(frames[1], frames[2])
    levels = frames[:, :, -1, 0].mean(1)
    assert (np.argsort(levels[[4, 1, 3, 5, 6]]) == np.arange(5)).all()


def test_real_clips_open_and_agree(tmp_path):
    """Odd metadata included: a title that is no UTF-8, no frame count, one frame too many."""
    counts = {}
    for path in real_clips():
        kept = path.name in ("mmaction2_part_0.mp4", "TrumanShow_wave_f_nm_np1_fr_med_26.avi")
        _, counts[path.name] = same_pixels(path, tmp_path, cached=kept or path.name.startswith("hmdb51"))
    promised = {"decord_flipping_a_pancake.mkv": 310, "mmaction2_test.mp4": 300, "v_SoccerJuggling_g23_c01.avi": 240}
    promised["TrumanShow_wave_f_nm_np1_fr_med_26.avi"] = 48  # the header says 49
    assert {k: counts[k] for k in promised} == promised


def test_seeking_decodes_less(tmp_path, monkeypatch):
    """Two late frames of a file with many key frames."""
    from dataset.clips import frame_reader

    candidates = [p for p in real_clips() if p.suffix == ".mp4"]
    path = next(p for p in candidates if len(layout(p, 0)[2]) >= 4)
    _, times, keys = layout(path, 0)
    late = times.index(keys[-1]) + 2
    FrameReader(64).read(ClipSource(path), [late])  # the layout of the file is found once
    seen = collections.Counter()
    original = frame_reader.opened
    for seek in (False, True):

        @contextlib.contextmanager
        def counted(path, seek=seek):
            with original(path) as (container, stream):

                def decode(stream):
                    for frame in container.decode(stream):
                        seen[seek] += 1
                        yield frame

                yield types.SimpleNamespace(decode=decode, seek=container.seek), stream

        with monkeypatch.context() as m:
            m.setattr(frame_reader, "opened", counted)
            FrameReader(64, seek=seek).read(ClipSource(path), [late])
    assert seen[True] <= 4 < late < seen[False]


def test_folder_of_frames(tmp_path):
    from PIL import Image

    for i in range(1, 6):
        Image.fromarray(np.full((20, 30, 3), 10 * i, np.uint8)).save(tmp_path / f"img_{i:05}.png")
    source = ClipSource(tmp_path, "img_{:05}.png", first=2, count=4)
    reader = FrameReader(10)
    assert reader.count(source) == 4
    assert reader.read(source, [0, 3, 3])[:, 0, 0, 0].tolist() == [20, 50, 50]
    with pytest.raises(UserError, match="img_00006.png' is missing"):
        reader.read(source, [4])
    (tmp_path / "img_00003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="img_00003.png' is corrupt"):
        reader.read(source, [1])
    Image.fromarray(np.zeros((21, 30, 3), np.uint8)).save(tmp_path / "img_00003.png")
    with pytest.raises(UserError, match="different sizes"):
        reader.read(source, [0, 1])


def test_a_name_that_is_no_utf_8(tmp_path):
    """Of a file from another system, which a list cannot name, but --unlabelled finds."""
    source = ClipSource(tmp_path / os.fsdecode(b"clip \xe9.avi"))
    source.path.write_bytes(b"x")
    data = VideoData("v", "ab", [Entry(source, 0, "")], [], ClipSettings(), FrameReader(16), DataOptions(tmp_path))
    assert len(data.digest_of("train")) == 16 and FrameCache(tmp_path, 16).path(source).suffix == ".npy"


@pytest.mark.parametrize("cached", [False, True])
def test_broken_videos(tmp_path, cached):
    whole = write_video(tmp_path / "whole.avi", 30, gop=30).read_bytes()
    counted = write_video(tmp_path / "counted.avi", 30, codec="libx264", gop=4).read_bytes()  # by packets, not decoded
    reader = FrameReader(16, cache=tmp_path / "cache" if cached else None)
    for name, content, words in (
        ("empty.avi", b"", "empty"),
        ("text.avi", b"not a video at all" * 100, "not a video"),
        ("cut.avi", whole[:200], "not a video|truncated"),
        ("half.avi", counted[: len(counted) // 2], "truncated"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*({words}).*--skip_"):
            reader.count(ClipSource(path))
    for read in (reader.count, lambda source: reader.read(source, [0])):
        with pytest.raises(UserError, match="there is no video|cannot read"):
            read(ClipSource(tmp_path / "none.avi"))


def test_a_cache_that_cannot_be_written_is_named_by_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    source = ClipSource(write_video(tmp_path / "a.avi", 3))
    with pytest.raises(UserError, match="point --frame_cache at"):
        FrameReader(16, cache=tmp_path / "file").count(source)


def test_a_full_disk_keeps_no_half_of_a_clip(tmp_path, monkeypatch):
    source = ClipSource(write_video(tmp_path / "a.avi", 3))

    def full(file, clip):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dataset.clips.frame_cache.np.save", full)
    with pytest.raises(UserError, match="No space left on device"):
        FrameReader(16, cache=tmp_path / "cache").count(source)
    assert not list((tmp_path / "cache").iterdir())


# --- lists and loaders ------------------------------------------------------------------------------------------------


def test_list_formats(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a b/c.mp4 7\n\nframes/x 30 2\nframes/y 100 20 1\n")
    video, frames, offset = read_entries(path, Path("root"))
    assert (video.source.path, video.label, video.source.template) == (Path("root/a b/c.mp4"), 7, None)
    assert (frames.source.first, frames.source.count, frames.label) == (1, 30, 2)
    assert (offset.source.first, offset.source.count, offset.label) == (101, 20, 1)
    assert offset.source.template.format(7) == "img_00007.jpg"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("clip.mp4", "line 2: 'clip.mp4' is not"),
        ("a 1 2 3 4", "line 2.*is not of the form"),
        ("a.mp4 -1", "negative"),
        ("a.mp4 one", "line 2"),
        ("dir 0 1", "cannot have 0 frames"),
    ],
)
def test_lines_that_do_not_parse(tmp_path, line, words):
    path = tmp_path / "list.txt"
    path.write_text(f"fine.mp4 0\n{line}\n")
    with pytest.raises(UserError, match=words):
        read_entries(path, tmp_path)


def test_bad_lists(folder, tmp_path):
    with pytest.raises(UserError, match=r"cannot read the list of videos '.*absent.txt'"):
        load(folder, train_list=tmp_path / "absent.txt")
    for name, text, words in (
        ("empty.txt", "\n", "names no videos"),
        ("high.txt", "clip 0.mp4 2\n", r"high.txt, line 1: the class 2 is out of range, the data set has 0 to 1"),
        ("zero.txt", "\0\0 0\n", "zero.txt, line 1"),
        ("gone.txt", "clip 9.mp4 1\n", r"gone.txt, line 1: the video '.*clip 9.mp4' does not exist.*--skip_corrupt"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=words):
            load(folder, test_list=tmp_path / name)
    with pytest.raises(UserError, match="--short_side 8 is less than --image_size 16"):
        load(folder, short_side=8)


def test_loaders(folder):
    data = load(folder)
    assert (data.name, data.num_classes, data.shapes) == ("video", 2, {"video": (4, 3, 16, 16)})
    assert data.train_labels.tolist() == [0, 1, 0, 1] and data.num_crops is None
    loader = data.train_loader(2, seed=1, device=CPU)
    for part in (loader, data.test_loader(2, device=CPU)):
        assert pickle.dumps(part.samples), "workers that are spawned, as on macOS, unpickle it"
    first = list(loader)
    assert len(loader) == len(first) == 2
    assert first[0].inputs["video"].shape == (2, 4, 3, 16, 16) and first[0].inputs["video"].min() >= 0
    assert first[0].inputs["video"].max() <= 1
    assert sorted(i for b in first for i in b.index.tolist()) == [0, 1, 2, 3]
    assert all(torch.equal(b.target, b.index % 2) for b in first)
    again = list(data.train_loader(2, seed=1, device=CPU))
    assert all(torch.equal(a.inputs["video"], b.inputs["video"]) for a, b in zip(first, again, strict=True))
    loader.set_epoch(2)
    assert not all(torch.equal(a.inputs["video"], b.inputs["video"]) for a, b in zip(first, loader, strict=True))
    loader.set_epoch(1, start_step=1)
    (rest,) = loader
    assert torch.equal(rest.inputs["video"], first[1].inputs["video"])
    ranks = [list(data.train_loader(4, seed=1, device=CPU, rank=r, world_size=2)) for r in (0, 1)]
    whole = next(iter(data.train_loader(4, seed=1, device=CPU)))
    halves = torch.cat([r[0].inputs["video"] for r in ranks])
    assert torch.equal(halves, whole.inputs["video"])
    for bad, words in ((5, "4 clips"), (0, "4 clips")):
        with pytest.raises(UserError, match=words):
            data.train_loader(bad, seed=0, device=CPU)


def test_workers_cache_and_seeking_change_nothing(folder, tmp_path):
    wanted = [b.inputs["video"] for b in load(folder).train_loader(2, seed=0, device=CPU)]
    state = torch.random.get_rng_state()
    loader = load(folder, seek=True, frame_cache=tmp_path, num_workers=1).train_loader(2, seed=0, device=CPU)
    for _ in range(2):
        got = [b.inputs["video"] for b in loader]
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_test_views(folder):
    """Three crops, two clips: crop by crop, frames of a clip side by side."""
    data = load(folder, short_side=16)
    one = next(iter(data.test_loader(8, device=CPU)))
    assert one.views == 1 and one.inputs["video"].shape == (2, 4, 3, 16, 16)
    batch = next(iter(data.test_loader(12, device=CPU, views=TestViews(clips=2, crops="three"))))
    assert batch.views == 6 and batch.inputs["video"].shape == (12, 4, 3, 16, 16) and len(batch.target) == 2
    assert torch.equal(batch.inputs["video"][2], one.inputs["video"][0])  # the third crop is the middle
    ten = next(iter(data.test_loader(20, device=CPU, views=TestViews(crops="ten", size=8))))
    views = ten.inputs["video"][:10]
    assert views.shape == (10, 4, 3, 8, 8)
    assert torch.equal(views[1], views[0].flip(-1)) and torch.equal(views[9], views[8].flip(-1))
    with pytest.raises(UserError, match="--sampling dense"):
        next(iter(data.test_loader(8, device=CPU, views=TestViews(clips=3))))
    dense = load(folder, sampling="dense")
    batch = next(iter(dense.test_loader(10, device=CPU, views=TestViews(clips=10))))
    assert batch.views == 10


def test_corrupt_videos_are_reported_and_skipped(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "clip 1.mp4").write_bytes(b"")
    (tmp_path / "clip 5.mp4").write_bytes(b"garbage" * 50)
    with pytest.raises(UserError, match=r"train.txt, line 2.*clip 1.mp4' is empty"):
        load(tmp_path)
    data = load(tmp_path, skip_corrupt=True)
    caplog.set_level("INFO")
    loader = data.train_loader(2, seed=0, device=CPU)
    batches = list(loader)
    assert "clip 1.mp4" in caplog.text and loader.end_epoch() == {"skipped_clips": 1}
    assert sorted(i for b in batches for i in b.index.tolist()) == [0, 2, 2, 3]  # the next one stands in
    assert all(torch.equal(b.target, b.index % 2) for b in batches)
    (batch,) = data.test_loader(8, device=CPU)
    assert "clip 5.mp4" in caplog.text
    assert batch.index.tolist() == [0]
    data.options = dataclasses.replace(data.options, stream=StreamConfig(skip_corrupt=False))
    with pytest.raises(UserError, match="clip 5.mp4.*not a video"):
        list(data.test_loader(8, device=CPU))


def test_directions_change_with_the_picture(folder):
    data = load(folder, flip_pairs="0:1", train_crop="centre")
    loader, seen = data.train_loader(4, seed=0, device=CPU), set()
    straight = dataclasses.replace(data.settings, flip=False)
    for epoch in range(1, 7):
        loader.set_epoch(epoch)
        for batch in loader:
            for clip, label, i in zip(batch.inputs["video"], batch.target.tolist(), batch.index.tolist(), strict=True):
                seen.add((i % 2, label))
                assert clip.shape == (4, 3, 16, 16)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}
    entry, rng = data.train[0], np.random.default_rng
    mirrored = [s for s in range(20) if data.settings.train_view(data.reader, entry, rng(s))[1] == 1][0]
    clip, _ = data.settings.train_view(data.reader, entry, rng(mirrored))
    same, label = straight.train_view(data.reader, entry, rng(mirrored))
    assert label == 0 and torch.equal(clip.flip(-1), same)


def test_kinetics_layout(folder, tmp_path):
    for part, numbers in (("train", range(4)), ("val", (4, 5))):
        place = tmp_path / f"videos_{part}"
        place.mkdir()
        for i in numbers:
            (place / f"v{i}.mp4").write_bytes((folder / f"clip {i}.mp4").read_bytes())
        lines = "".join(f"v{i}.mp4 {390 + i}\n" for i in numbers)
        (tmp_path / f"kinetics400_{part}_list_videos.txt").write_text(lines)
    data = load(tmp_path, "kinetics400")
    assert (data.num_classes, len(data.train), len(data.test)) == (400, 4, 2)
    assert next(iter(data.test_loader(2, device=CPU))).target.tolist() == [394, 395]
    with pytest.raises(UserError, match="kinetics400_train_list_videos.txt"):
        load(folder, "kinetics400")
    (tmp_path / "kinetics400_val_list_videos.txt").write_text("v4.mp4 400\n")
    with pytest.raises(UserError, match="class 400 is out of range"):
        load(tmp_path, "kinetics400")


def test_held_out_and_few(folder):
    data = load(folder, val_fraction=0.5)
    assert (len(data.train), len(data.test), data.evaluated_on) == (2, 2, "held-out 0.5 of train")
    assert len(load(folder, few_ratio=0.5).train) == 2
    assert load(folder).checksum == load(folder).checksum != load(folder, few_ratio=0.5).checksum
    with pytest.raises(
        UserError, match="--few_ratio 0.1 leaves 2 of 2 classes without any training clip .*another value"
    ):
        load(folder, few_ratio=0.1)
    with pytest.raises(UserError, match="--val_fraction 0.9 leaves 2 of 2 classes without any remaining clip"):
        load(folder, val_fraction=0.9)


# --- averages over views ----------------------------------------------------------------------------------------------


def test_average_views():
    logits = rand((6, 4), 1)
    prob = average_views(logits, 3, "prob")
    torch.testing.assert_close(prob.exp(), logits.softmax(1).view(2, 3, 4).mean(1))
    torch.testing.assert_close(average_views(logits, 3, "score"), logits.view(2, 3, 4).mean(1))
    assert average_views(logits, 1, "prob") is logits


def test_mean_class_accuracy_over_the_union():
    """Three true classes and one only predicted: (1 + 1/2 + 0 + 0) / 4; a class on neither side does not count."""
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    confusion[0, 0], confusion[1, 1], confusion[1, 3], confusion[2, 0] = 4, 1, 1, 2
    assert mean_class_accuracy(confusion) == pytest.approx(100 * 1.5 / 4)


def test_evaluation_over_views(folder):
    data = load(folder, short_side=16)
    loader = data.test_loader(8, device=CPU, views=TestViews(crops="three"))

    def predict(inputs):
        right = torch.zeros(len(inputs["video"]), 2)
        right[:, 0] = 1.0  # always the first class
        return {"student": right, "other": 1 - right}

    found = evaluate_views(predict, loader, CPU, 2, "prob")
    result = found["student"]
    assert found["other"]["acc"] == 50.0 and found["other"]["samples"] == 2
    assert (result["acc"], result["acc_mean_class"], result["samples"]) == (50.0, 50.0, 2)


def test_defaults_are_the_published_pipeline():
    settings = ClipSettings()
    assert (settings.num_segments, settings.size, settings.short_side) == (8, 224, 256)
    assert (settings.sampling, settings.train_crop, settings.flip) == ("uniform", "multiscale13", True)


def test_why_flags_of_images_have_no_effect_on_clips():
    """Videos are decoded while they are read, so none of these flags may be called idle as held on the device."""
    facts = dict(distill="kd", alone=False, own_term=False, stages=1, on_cpu=True, processes=1, network=None)
    for name, videos in (("video", True), ("utd_mhad", False)):
        data = types.SimpleNamespace(name=name, streamed=False, videos=videos, shapes={"video": (8, 3, 32, 32)})
        around = Around(dataset=name, data=data, **facts)
        why = StreamConfig().idle(around) | SourceConfig().idle(around)
        assert not any("device" in reason for reason in why.values())
        assert why["random_erase"] == why["augment"] == f"{name} holds no images" and "skip_corrupt" not in why
        assert ("num_workers" in why) != videos and why["val_dir"] == f"{name} is not a tree of images"
