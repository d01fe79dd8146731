"""Action recordings: pairs, protocols, clips and their cache, windows, loaders, and what is refused."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from core.protocols import UserError
from dataset.base import data_options
from dataset.clips.clip_transforms import centre_box, crop_boxes, render
from dataset.clips.decode import ClipSource, read_clip, read_video
from dataset.clips.frame_cache import FrameCache
from dataset.clips.frame_sampling import segment_frames
from dataset.clips.lists import read_list
from dataset.recordings import berkeley_mhad, utd_mhad
from dataset.recordings import mmact as mmact_module
from dataset.recordings.berkeley_mhad import load_berkeley_mhad
from dataset.recordings.mmact import load_mmact
from dataset.recordings.pairs import Recording, Sample, check_split, pair
from dataset.recordings.sensors import read_sensor, window
from dataset.recordings.utd_mhad import load_utd_mhad
from tests.support.recordings import (
    ACTIONS,
    berkeley,
    left_bright,
    mmact,
    utd,
    write_csv,
    write_frames,
    write_inertial,
    write_video,
)
from tests.support.shared import shared

CPU = torch.device("cpu")

MISSING = frozenset({(8, 1, 4), (23, 6, 4), (27, 8, 4)})  # of UTD-MHAD, from the published 864


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return utd(tmp_path_factory.mktemp("utd"))


def options(root, *modality, **kwargs):
    kwargs = {"num_segments": 4, "image_size": 16, "window": 24, "clip_cache": None, **kwargs}
    return data_options(root, modality=modality, **kwargs)


@pytest.fixture(scope="module")
def paired(root):
    return load_utd_mhad(options(root, "accel", "video"))


@pytest.fixture
def copy(root, tmp_path):
    return Path(shutil.copytree(root, tmp_path / "copy"))


# ---- frames of a clip


def test_segments_of_training_and_evaluation():
    """TSN: one frame of each of K equal parts; the middles in evaluation. Published values for F = 52, K = 8."""
    assert segment_frames(52, 8) == [int(3.25 + 6.5 * k) for k in range(8)] == [3, 9, 16, 22, 29, 35, 42, 48]
    assert segment_frames(8, 8) == list(range(8)) and segment_frames(9, 2) == [2, 6]
    assert segment_frames(52, 8, [0.0] * 8) == [6 * k for k in range(8)]
    assert segment_frames(52, 8, [0.999] * 8) == [6 * k + 5 for k in range(8)]
    with pytest.raises(UserError, match="7 frames are fewer than --num_segments 8"):
        segment_frames(7, 8)


def test_crops_are_the_published_ones():
    """Sides of 1, .875, .75, .66 of the shorter side, neighbours combined, 13 places; all inside the picture."""
    boxes = crop_boxes(256, 340)
    assert {(h, w) for *_, h, w in boxes} == {
        (256, 256), (256, 224), (224, 256), (224, 224), (224, 192),
        (192, 224), (192, 192), (192, 168), (168, 192), (168, 168),
    }  # fmt: skip
    assert len([b for b in boxes if b[2:] == (168, 168)]) == 13 and (44, 86, 168, 168) in boxes
    assert all(y >= 0 and x >= 0 and y + h <= 256 and x + w <= 340 for y, x, h, w in boxes)
    assert centre_box(256, 340, 224) == (16, 58, 224, 224) and centre_box(10, 20, 64) == (0, 5, 10, 10)


def test_rendering_crops_resizes_and_mirrors():
    clip = np.arange(3 * 8 * 10, dtype=np.uint8).reshape(3, 8, 10, 1)
    same = render(clip, [2, 0], (1, 2, 4, 4), 4)
    assert same.dtype == torch.uint8 and torch.equal(same[1, 0], torch.from_numpy(clip[0, 1:5, 2:6, 0].copy()))
    assert torch.equal(render(clip, [2, 0], (1, 2, 4, 4), 4, mirror=True), same.flip(-1))
    assert render(clip, [0], (0, 0, 8, 8), 16).shape == (1, 1, 16, 16)


# ---- decoding


def test_video_frames_size_and_grey(tmp_path):
    path = tmp_path / "a.avi"
    clip = left_bright(9, 0)
    write_video(path, clip)
    frames = read_video(path)
    assert frames.shape == clip.shape and frames.dtype == np.uint8
    assert frames[:, :, :14].mean() > frames[:, :, 18:].mean() + 100
    assert read_video(path, 12).shape == (9, 12, 16, 3)
    grey = np.repeat(clip[..., :1], 3, axis=3)
    write_video(tmp_path / "grey.avi", grey, "ffv1")
    assert read_video(tmp_path / "grey.avi").shape == (9, 24, 32, 1)


def test_cache_decodes_once_and_notices_another_video(tmp_path, monkeypatch):
    source = ClipSource(tmp_path / "a.avi")
    write_video(source.path, left_bright(6, 0))
    first = FrameCache(tmp_path / "cache", 12)
    mapped = first.get(source)
    clip = np.array(mapped)
    assert clip.shape == (6, 12, 16, 3) and isinstance(mapped, np.memmap)
    (file,) = (tmp_path / "cache").iterdir()
    again = FrameCache(tmp_path / "cache", 12)
    with monkeypatch.context() as patch:
        patch.setattr("dataset.clips.decode.read_clip", lambda *_: pytest.fail("decoded twice"))
        assert np.array_equal(again.get(source), clip) and again.fill([source]) == clip.nbytes
    file.write_bytes(file.read_bytes()[:50])  # torn by a full disk
    assert np.array_equal(FrameCache(tmp_path / "cache", 12).get(source), clip)
    write_video(source.path, left_bright(8, 1))
    assert FrameCache(tmp_path / "cache", 12).get(source).shape[0] == 8
    assert FrameCache(None, 6).get(source).shape == (8, 6, 8, 3)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="--clip_cache"):
        FrameCache(blocked, 12).get(source)


def test_damaged_frames_are_decoded_again(tmp_path, caplog):
    source, rng = ClipSource(tmp_path / "a.avi"), random.Random(0)
    write_video(source.path, left_bright(6, 0))
    want = FrameCache(None, 12).get(source)
    FrameCache(tmp_path / "cache", 12).fill([source])
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    half, zeros = whole[: len(whole) // 2], whole[:1000] + bytes(500) + whole[1500:]
    damaged = [
        half,
        zeros,
        whole[:-24],
        b"",
        whole + b"x",
        bytes(len(whole)),
        *(flipped(whole, rng) for _ in range(40)),
    ]
    damaged += [flipped(whole[:128], rng) + whole[128:] for _ in range(20)]  # the header alone
    with caplog.at_level("INFO"):
        for content in damaged:
            caplog.clear()
            file.write_bytes(content)
            cache = FrameCache(tmp_path / "cache", 12)
            index = [0, len(cache.get(source)) - 1, *range(6)]
            assert np.array_equal(cache.frames(source, index), want[[0, 5, *range(6)]])
            assert file.read_bytes() == whole or content[128:] == whole[128:], "blanks of the header hold nothing"
            assert len(caplog.records) == (file.read_bytes() == whole)
            assert "such clips are decoded again" in caplog.text or not caplog.records


def flipped(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def test_bad_videos_are_named(tmp_path):
    good = tmp_path / "good.avi"
    write_video(good, left_bright(40, 0))
    for name, content, words in (
        ("empty.avi", b"", "empty"),
        ("noise.avi", b"no video at all" * 50, "not a video"),
        ("cut.avi", good.read_bytes()[: good.stat().st_size // 2], "truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{words}|{words}.*{name}"):
            read_video(tmp_path / name)
    with pytest.raises(UserError, match="there is no video"):
        read_video(tmp_path / "none.avi")


def test_folders_of_frames(tmp_path):
    write_frames(tmp_path / "f", "{:06d}.jpg", 1, 4)
    source = ClipSource(tmp_path / "f", "{:06d}.jpg")
    assert read_clip(source).shape == (4, 16, 20, 1) and read_clip(source, 8).shape == (4, 8, 10, 1)
    with pytest.raises(UserError, match="should hold 5 frames, but '000005.jpg' is missing"):
        read_clip(dataclasses.replace(source, count=5))
    write_frames(tmp_path / "f", "{:06d}.jpg", 5, 1, size=10)
    with pytest.raises(UserError, match="different sizes"):
        read_clip(source)
    (tmp_path / "f" / "000002.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match="000002.jpg' is corrupt"):
        read_clip(source)


def test_depth_recordings_are_clips_too(tmp_path):
    path = tmp_path / "a1_s1_t1_depth.mat"
    savemat(path, {"d_depth": np.full((12, 16, 5), 1600, dtype=np.uint16)})
    assert read_clip(ClipSource(path)).shape == (5, 12, 16, 1) and (read_clip(ClipSource(path), 6) == 100).all()
    savemat(path, {"d_depth": np.zeros((3, 4))})
    with pytest.raises(UserError, match="expected \\[H, W, T\\]"):
        read_clip(ClipSource(path))


# ---- sensors


def test_columns_of_a_modality(tmp_path):
    path = tmp_path / "a1_s1_t1_inertial.mat"
    values = np.arange(120.0).reshape(20, 6)
    savemat(path, {"d_iner": values})
    for modality, columns in (("accel", [0, 1, 2]), ("gyro", [3, 4, 5]), ("inertial", range(6))):
        assert np.array_equal(read_sensor(path, modality), values.T[list(columns)])
    values[3:5, 1] = np.nan
    savemat(path, {"d_iner": values})
    assert np.array_equal(read_sensor(path)[1], np.arange(20) * 6 + 1)  # gaps are filled along the line


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((20, 5)), "expected \\[T, 6\\]"),
        (np.zeros((4, 6)), "fewer than 8"),
        (np.full((20, 6), np.nan), "no finite value"),
    ],
)
def test_recordings_that_are_refused(tmp_path, values, words):
    path = tmp_path / "a1_s1_t1_inertial.mat"
    savemat(path, {"d_iner": values})
    with pytest.raises(UserError, match=words):
        read_sensor(path)


def test_damaged_sensor_files_are_named(tmp_path):
    path = tmp_path / "a1_s1_t1_inertial.mat"
    write_inertial(path, 0)
    path.write_bytes(path.read_bytes()[:300])
    for wrong, words in (
        (path, "a1_s1_t1_inertial.mat.*truncated"),
        (tmp_path / "x.mat", "there is no sensor recording"),
        (tmp_path / "x.wav", "is not a sensor recording"),
    ):
        if wrong.suffix == ".wav":
            wrong.write_text("")
        with pytest.raises(UserError, match=words):
            read_sensor(wrong)
    savemat(path, {"other": 1})
    with pytest.raises(UserError, match="has no d_iner"):
        read_sensor(path)
    for text, words in (("1 2 3\n", "line 1: 3 columns, expected 4"), ("1 2 3 x\n", "no numbers"), ("", "is empty")):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            read_sensor(tmp_path / "a.txt")


def test_windows_have_one_length():
    line = np.stack([np.linspace(0, 1, 50), np.full(50, 3.0)])
    for length in (10, 50, 200):
        out = window(line, length)
        assert out.shape == (2, length) and out.dtype == torch.float32
        assert (out[0].diff() >= 0).all() and torch.allclose(out[1], torch.tensor(3.0))
    torch.testing.assert_close(window(line, 50), torch.from_numpy(line).float())


# ---- UTD-MHAD


def test_protocol_counts_of_utd_mhad():
    """864 combinations, three missing; 431/430 across subjects, 432/429 by trial, 16 of every class there."""
    keys = [(a, s, t) for a in range(1, 28) for s in range(1, 9) for t in range(1, 5)]
    present = [Recording(Path("x"), k, k[0] - 1, k[1]) for k in keys if k not in MISSING]
    assert len(present) == 861
    for name, counts in (("cross_subject", (431, 430)), ("trial", (432, 429))):
        train = [r for r in present if utd_mhad.PROTOCOLS[name].trains(r)]
        assert (len(train), len(present) - len(train)) == counts
    assert [r.label for r in train].count(7) == 16


def test_all_of_utd_mhad():
    root = shared("utd_mhad")
    for split, counts in (("cross_subject", (431, 430)), ("trial", (432, 429))):
        data = load_utd_mhad(data_options(root, modality=("accel",), data_split=split))
        assert (len(data.train), len(data.test)) == counts and data.num_classes == 27
        assert all(s.label == s.key[0] - 1 for s in (*data.train, *data.test))
        assert {s.key for s in (*data.train, *data.test)}.isdisjoint(MISSING)
    clips = utd_mhad.find(root, "video")
    samples, _ = pair({"accel": utd_mhad.find(root, "accel"), "video": clips}, "accel", False, lambda r: True)
    assert len(samples) == len(clips) == 861 and {r.origin for r in clips} == {"depth video"}


def test_pairs_are_of_one_performance(root, paired):
    assert len(paired.train) == len(paired.test) == len(ACTIONS) * 4
    for sample in (*paired.train, *paired.test):
        for recording in sample.files.values():
            a, s, t, _ = utd_mhad.key_of(recording.path.stem)
            assert (a, s, t) == sample.key and sample.label == a - 1
    loader = paired.train_loader(5, seed=1, device=CPU)
    loader.set_epoch(3)
    for batch in loader:
        for i, place in enumerate(batch.index.tolist()):
            sample = paired.train[place]
            assert batch.target[i] == sample.label
            own = window(read_sensor(sample.files["accel"].path), 24)
            torch.testing.assert_close(batch.inputs["sensor"][i], own)


def test_order_and_views_depend_on_seed_and_epoch_alone(paired):
    def run(seed, epoch, start=0):
        loader = paired.train_loader(5, seed=seed, device=CPU)
        loader.set_epoch(epoch, start)
        return list(loader)

    a, b, c = run(0, 1), run(0, 1), run(0, 2)
    assert [len(x) for x in a] == [5, 5, 2]
    assert all(torch.equal(x.inputs["video"], y.inputs["video"]) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0].inputs["video"], c[0].inputs["video"])
    assert torch.equal(run(0, 1, 1)[0].inputs["video"], a[1].inputs["video"])
    seen = torch.cat([x.index for x in a])
    assert seen.sort().values.tolist() == list(range(12))
    assert a[0].inputs["video"].shape == (5, 4, 3, 16, 16) and a[0].inputs["video"].max() <= 1
    halves = [paired.train_loader(4, seed=0, device=CPU, rank=r, world_size=2) for r in range(2)]
    assert torch.equal(
        torch.cat([next(iter(h)).index for h in halves]), next(iter(paired.train_loader(4, seed=0, device=CPU))).index
    )


def test_threads_prepare_the_same_batches(paired):
    """What a GPU is fed; also where an epoch is entered or left in the middle."""
    plain, ahead = (paired.train_loader(5, seed=0, device=CPU) for _ in range(2))
    for start in (0, 1):
        plain.set_epoch(2, start)
        ahead.set_epoch(2, start)
        pairs = list(zip(plain, ahead.ahead(start, 3), strict=True))
        assert len(pairs) == 3 - start
        for a, b in pairs:
            assert torch.equal(a.inputs["video"], b.inputs["video"]) and torch.equal(a.index, b.index)
    left = ahead.ahead(0, 2)
    assert torch.equal(next(left).index, next(iter(plain)).index)
    left.close()


def test_swipes_are_never_mirrored(paired):
    """Actions 1 and 2 are swipes, 4 is a two-hand clap; the left half of every clip is bright."""
    seen = {True: set(), False: set()}
    for epoch in range(1, 9):
        loader = paired.train_loader(6, seed=0, device=CPU)
        loader.set_epoch(epoch)
        for batch in loader:
            x = batch.inputs["video"]
            right = x[..., -3:].mean((1, 2, 3, 4)) > x[..., :3].mean((1, 2, 3, 4)) + 0.2
            for label, mirrored in zip(batch.target.tolist(), right.tolist(), strict=True):
                seen[mirrored].add(label)
    assert seen[True] == {3} and {0, 1, 3} <= seen[False]
    swipes = {i for i, name in enumerate(utd_mhad.CLASSES) if "swipe" in name or "circle" in name or "right" in name}
    assert swipes and not swipes & utd_mhad.SYMMETRIC


def test_video_may_be_absent_when_tested(copy, paired):
    for path in (copy / "RGB").iterdir():
        if utd_mhad.key_of(path.stem)[1] % 2 == 0:
            path.unlink()
    data = load_utd_mhad(options(copy, "accel", "video"))
    assert len(data.test) == len(paired.test)
    batch = next(iter(data.test_loader(5, device=CPU)))
    assert batch.inputs["sensor"].shape == (5, 3, 24)
    with pytest.raises(UserError, match="has no video recording, but the network reads one"):
        batch.inputs["video"]
    full = next(iter(paired.test_loader(5, device=CPU)))
    assert full.inputs["video"].shape == (5, 4, 3, 16, 16) and full.inputs["video"] is full.inputs["video"]


@pytest.mark.parametrize("kind", ["video", "inertial"])
def test_a_missing_twin_names_both_files(copy, kind):
    gone = copy / ("RGB/a2_s3_t1_color.avi" if kind == "video" else "Inertial/a2_s3_t1_inertial.mat")
    gone.unlink()
    with pytest.raises(UserError) as error:
        load_utd_mhad(options(copy, "accel", "video"))
    assert "a2_s3_t1_color.avi" in str(error.value) and "a2_s3_t1_inertial.mat" in str(error.value)
    assert "--skip_corrupt" in str(error.value)
    data = load_utd_mhad(options(copy, "accel", "video", skip_corrupt=True))
    assert len(data.train) == 11 and any("left out 1 recordings" in note for note in data.notes)


def test_damaged_files_are_named_or_left_out(copy):
    (copy / "RGB" / "a2_s3_t1_color.avi").write_bytes(b"")
    inertial = copy / "Inertial" / "a1_s2_t1_inertial.mat"
    inertial.write_bytes(inertial.read_bytes()[:200])
    with pytest.raises(UserError, match="a2_s3_t1_color.avi' is empty"):
        load_utd_mhad(options(copy, "accel", "video"))
    with pytest.raises(UserError, match="a1_s2_t1_inertial.mat' is truncated"):
        load_utd_mhad(options(copy, "accel")).windows("test")
    data = load_utd_mhad(options(copy, "accel", "video", skip_corrupt=True))
    assert (len(data.train), len(data.test)) == (11, 11)
    assert {s.key for s in data.train + data.test}.isdisjoint({(2, 3, 1), (1, 2, 1)})


def test_contradictory_recordings_are_refused(copy):
    shutil.copytree(copy / "RGB", copy / "again")
    with pytest.raises(UserError, match="two video recordings of one performance"):
        load_utd_mhad(options(copy, "accel", "video"))
    key = (1, 1, 1)
    found = {"accel": [Recording(Path("a"), key, 0, 1)], "video": [Recording(Path("b"), key, 5, 1)]}
    with pytest.raises(UserError, match="different labels"):
        pair(found, "accel", False, lambda r: True)


def test_a_clip_shorter_than_the_segments_is_named_or_left_out(root):
    with pytest.raises(UserError, match="_color.avi': 10 frames are fewer than --num_segments 11"):
        load_utd_mhad(options(root, "video", num_segments=11))
    data = load_utd_mhad(options(root, "video", num_segments=11, skip_corrupt=True))
    assert len(data.train) + len(data.test) == 18 and "left out 6 recordings" in data.notes[-1]
    assert sum(len(batch.target) for batch in data.train_loader(6, seed=0, device=CPU)) == len(data.train)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"modality": ("smell",)}, "no modality 'smell': choose accel"),
        ({"modality": ("accel", "gyro")}, "accel and gyro are both read as 'sensor'"),
        ({"data_split": "random"}, "no split 'random': choose cross_subject, trial"),
        ({"val_fraction": 0.1}, "leave --val_fraction"),
        ({"modality": ("depth",)}, "holds no depth recordings"),
        ({"root": Path("nowhere")}, "'nowhere' does not exist"),
        ({"num_segments": 0}, "--num_segments 0 must be at least 1"),
        ({"window": 3}, "--window 3 must be at least 8"),
    ],
)
def test_options_that_do_not_fit(root, wrong, words):
    with pytest.raises(UserError, match=words):
        load_utd_mhad(data_options(**{"root": root, "modality": ("accel",), "image_size": 16, **wrong}))


def test_a_subject_on_both_sides_is_refused():
    def sample(subject, trial):
        key = (1, subject, trial)
        return Sample(key, 0, subject, "", {"accel": Recording(Path(f"a1_s{subject}_t{trial}"), key, 0, subject)})

    protocol = utd_mhad.PROTOCOLS["cross_subject"]
    check_split([sample(1, 1)], [sample(2, 1)], protocol, "cross_subject")
    with pytest.raises(
        UserError, match="subject 1 is in both the training and the test set \\('a1_s1_t1' and 'a1_s1_t2'\\)"
    ):
        check_split([sample(1, 1)], [sample(1, 2)], protocol, "cross_subject")
    check_split([sample(1, 1)], [sample(1, 2)], utd_mhad.PROTOCOLS["trial"], "trial")
    with pytest.raises(UserError, match="no recording to test"):
        check_split([sample(1, 1)], [], protocol, "cross_subject")


def listed(root, train_subjects=(1, 3), label=lambda a: a - 1, home="/home/Students/frames/"):
    """Frame folders and the published pair of lists; returns root."""
    rows = {"train": [], "val": []}
    for a in ACTIONS:
        for s in (1, 2, 3, 4):
            name = f"a{a}_s{s}_t1_color"
            write_frames(root / "frames" / name, "{:06d}.jpg", 1, 6)
            write_inertial(root / f"a{a}_s{s}_t1_inertial.mat", s)
            rows["train" if s in train_subjects else "val"].append(f"{home}{name} 6 {label(a)}")
    for part, lines in rows.items():
        (root / f"UTD_rgb_{part}_list.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("home", ["/home/Students/frames/", "E:\\data\\frames\\"])
def test_published_frame_lists(tmp_path, home):
    data = load_utd_mhad(options(listed(tmp_path, home=home), "accel", "video"))
    assert (len(data.train), len(data.test)) == (6, 6)
    batch = next(iter(data.train_loader(6, seed=0, device=CPU)))
    assert batch.inputs["video"].shape == (6, 4, 3, 16, 16)


def test_lists_that_are_wrong(tmp_path):
    root = listed(tmp_path, label=lambda a: a)
    with pytest.raises(UserError, match="line 1: '.*a1_s1_t1_color' is listed with label 1, but its name means 0"):
        load_utd_mhad(options(root, "video"))
    path = root / "UTD_rgb_train_list.txt"
    for text, words in (
        ("a1_s1_t1_color 6\n", "not of the form"),
        ("a1_s1_t1_color six 0\n", "not of the form"),
        ("a1_s1_t1_color 0 0\n", "a clip cannot have 0 frames"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"train_list.txt, line 1: .*{words}"):
            read_list(path)
    path.write_text("a1_s1_t3_color 6 0\n")
    with pytest.raises(UserError, match="no folder 'a1_s1_t3_color' below"):
        load_utd_mhad(options(root, "video"))
    path.unlink()
    with pytest.raises(UserError, match="UTD_rgb_train_list.txt is missing"):
        load_utd_mhad(options(root, "video"))


def test_names_out_of_range():
    with pytest.raises(UserError, match="action 28"):
        utd_mhad.key_of("a28_s1_t1_color")
    assert utd_mhad.key_of("README_color") is None


# ---- Berkeley MHAD


def test_berkeley(tmp_path):
    root = berkeley(tmp_path)
    data = load_berkeley_mhad(options(root, "accel", "video"))
    assert len(data.train) == 2 * 2 * 2  # subjects 1 and 7, two actions, two cameras
    assert len(data.test) == 2  # a sensor recording is tested once
    assert {s.view for s in data.train} == {"cluster 1, camera 1", "cluster 3, camera 2"}
    batch = next(iter(data.train_loader(8, seed=0, device=CPU)))
    assert batch.inputs["video"].shape == (8, 4, 3, 16, 16) and batch.inputs["sensor"].shape == (8, 3, 24)
    assert len(load_berkeley_mhad(options(root, "video", "accel")).test) == 4
    assert len(load_berkeley_mhad(options(root, "shimmer01")).train) == 4
    with pytest.raises(UserError, match="action 12"):
        berkeley_mhad._key(12, 1, 1, "x")


def test_real_files_of_berkeley():
    data = load_berkeley_mhad(data_options(shared("berkeley_mhad"), modality=("accel",), window=32))
    assert len(data.train) + len(data.test) == 658 and data.num_classes == 11
    assert {s.subject for s in data.train} == set(range(1, 8)) and {s.subject for s in data.test} == set(range(8, 13))
    assert data.windows("test").shape == (len(data.test), 3, 32) and data.windows("test").isfinite().all()


# ---- MMAct


@pytest.fixture(scope="module")
def acted(tmp_path_factory):
    return mmact(tmp_path_factory.mktemp("mmact"))


@pytest.mark.parametrize(
    ("split", "counts"),
    [("cross_subject", (16, 8)), ("cross_session", (12, 12)), ("cross_scene", (12, 12))],
)
def test_splits_of_mmact(acted, split, counts):
    data = load_mmact(options(acted, "accel", data_split=split))
    assert (len(data.train), len(data.test)) == counts
    assert data.num_classes == 36 and {s.label for s in data.train} == {0, 2}  # Carrying_light is carrying_light


def test_cameras_of_mmact(acted):
    data = load_mmact(options(acted, "video", "accel", data_split="cross_view"))
    assert {s.view for s in data.train} == {"cam 1"} and {s.view for s in data.test} == {"cam 4"}
    assert len(data.train) == len(data.test) == 24
    with pytest.raises(UserError, match="cross_view separates the cameras of one performance"):
        load_mmact(options(acted, "accel", "video", data_split="cross_view"))
    paired = load_mmact(options(acted, "accel_phone", "video"))
    assert len(paired.train) == 32 and len(paired.test) == 8


def test_labels_of_mmact():
    label = mmact_module.label_of
    assert len(mmact_module.CLASSES) == 36 and label("waving_hand", "") == 35 and label("Carrying_light", "") == 2
    assert label("transferring_(large_)object", "") == 31 and 14 not in {label(n, "") for n in mmact_module.LABELS}
    with pytest.raises(UserError, match="'swimming', which MMAct does not have"):
        label("swimming", "x/swimming.csv")


def test_lists_of_mmact(acted):
    listing = acted / "mmact_train_list.txt"
    rows = ["subject01/cam1/scene1/session1/Carrying_light 5 35", "subject17/cam1/scene1/session1/carrying 5 0"]
    try:
        listing.write_text("\n".join(rows) + "\n")
        data = load_mmact(options(acted, "video"))
        assert [s.label for s in data.train] == [2] and [s.label for s in data.test] == [0]
        listing.write_text("subject01/cam1/scene1/session1/carrying 5 7\n")
        with pytest.raises(UserError, match="listed with label 7, but its name means 0"):
            load_mmact(options(acted, "video"))
    finally:
        listing.unlink()


def test_rows_of_a_csv_are_put_in_the_order_of_time(tmp_path):
    path = tmp_path / "carrying.csv"
    write_csv(path, 0)
    lines = path.read_text().splitlines()
    values = read_sensor(path)
    assert values.shape == (3, 30)
    path.write_text("\n".join(["timestamp,x,y,z", *lines[::-1]]) + "\n")
    assert np.array_equal(read_sensor(path), values)
