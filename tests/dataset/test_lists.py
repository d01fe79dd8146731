"""Lists of videos and labels as people write them, and what is odd about them."""

import logging
import subprocess

import numpy as np
import pytest
import scipy.io

from core.protocols import UserError
from dataset.clips.decode import read_depth, read_mat
from dataset.clips.lists import describe_oddities, read_entries, read_list
from dataset.images.files import UnreadableError
from scripts.sort_imagenet_val import labels_from_text
from tests.dataset.test_video import load, write_video
from tests.support.logs import records


def entries(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding=encoding)
    return read_entries(path, tmp_path)


def test_the_label_is_the_last_field(tmp_path):
    rows = entries(tmp_path, "shot 3 final.mp4 0\ntake 2.mp4 1\nshot 3 of 9 30 2\ncut 1 b 100 20 3\n")
    assert [(r.source.path.name, r.label) for r in rows] == [
        ("shot 3 final.mp4", 0),
        ("take 2.mp4", 1),
        ("shot 3 of", 2),  # FOLDER OFFSET FRAMES LABEL
        ("cut 1 b", 3),
    ]
    assert [(r.source.first, r.source.count) for r in rows[2:]] == [(10, 30), (101, 20)]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert entries(tmp_path, "a.mp4 0\n", "utf-8-sig")[0].source.path == tmp_path / "a.mp4"
    (tmp_path / "frames.txt").write_text("folder 12 3\n", encoding="utf-8-sig")
    assert read_list(tmp_path / "frames.txt")[0].folder == "folder"
    (tmp_path / "frames.txt").write_text("walk 12 30 4\nmy  clip 30 4\n")
    assert [row.folder for row in read_list(tmp_path / "frames.txt")] == ["walk 12", "my  clip"]
    (tmp_path / "labels.txt").write_text("a.png,cat\n", encoding="utf-8-sig")
    assert labels_from_text(tmp_path / "labels.txt") == {"a": "cat"}


@pytest.mark.parametrize("label", [100_000, 10**18, 10**50])
def test_a_label_beyond_any_data_set_is_refused_before_arrays_are_made(tmp_path, label):
    with pytest.raises(UserError, match=f"line 2: the class {label} is above 99999"):
        entries(tmp_path, f"a.mp4 0\nb.mp4 {label}\n")
    (tmp_path / "frames.txt").write_text(f"folder 12 {label}\n")
    with pytest.raises(UserError, match=f"line 1: the class {label} is above 99999"):
        read_list(tmp_path / "frames.txt")


def test_odd_lists_are_described_in_one_line(tmp_path, monkeypatch, caplog):
    train = entries(tmp_path, "a.mp4 2\nb.mp4 2\na.mp4 2\nc.mp4 5\n")
    test = entries(tmp_path, "b.mp4 2\nd.mp4 3\n")
    assert describe_oddities(train, test, 6) == (
        "training labels start at 2 instead of 0; no training clip has class 3, 4; 1 of 6 classes have no test clip; "
        "the test list has classes without a training clip (3); the training list names 1 clips more than once; "
        "1 clips are in both lists"
    )
    assert describe_oddities(train[:2], test[:1], 3).endswith(
        "all training clips have class 2; 1 clips are in both lists"
    )
    fine = entries(tmp_path, "a.mp4 1\nb.mp4 0\n")
    assert describe_oddities(fine, entries(tmp_path, "c.mp4 0\nd.mp4 1\n"), 2) == ""
    monkeypatch.setattr(logging.getLogger("retort"), "propagate", True)
    caplog.set_level(logging.INFO, "retort")
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", 5)
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 2\n")
    (tmp_path / "test.txt").write_text("c.mp4 0\nd.mp4 2\n")
    load(tmp_path)
    assert [r.getMessage() for r in records(caplog)] == ["lists of video: no training clip has class 1"]


def test_class_names_of_several_words_stay_apart(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("img_1.png,golden retriever\nimg_2.png,golden eagle\nimg 3.png\tgreat tit\t0\t1\t9\t9\n")
    assert labels_from_text(path) == {"img_1": "golden retriever", "img_2": "golden eagle", "img 3": "great tit"}
    path.write_text("img_1.png golden retriever\nimg_2.png n02 0 1 9 9\n")
    assert labels_from_text(path) == {"img_1": "golden retriever", "img_2": "n02"}
    path.write_text("ImageId,PredictionString\nval_1,n01 1 2 3 4 n01 5 6 7 8\nval_2,n02 \n")
    assert labels_from_text(path) == {"val_1": "n01", "val_2": "n02"}
    for cut in ("val_2", "val_2,"):
        path.write_text(f"ImageId,PredictionString\nval_1,n01 1 2 3 4\n{cut}\n")
        with pytest.raises(UserError, match="must have a file name and a class on every line"):
            labels_from_text(path)
    path.write_text("img_1.png,../elsewhere\n")
    with pytest.raises(UserError, match=r"class '\.\./elsewhere', which cannot be the name of a folder"):
        labels_from_text(path)


def test_a_recording_that_expands_to_gigabytes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.mat"
    scipy.io.savemat(path, {"d_depth": np.zeros((240, 320, 100), np.uint16)}, do_compression=True)
    assert path.stat().st_size < 100_000 and read_depth(path).shape == (100, 240, 320, 1)
    monkeypatch.setattr("dataset.clips.decode.LARGEST_ARRAY", 240 * 320 * 100 * 2 - 1)
    monkeypatch.setattr(scipy.io, "loadmat", None)  # refused before it is read
    with pytest.raises(UnreadableError, match=r"d_depth of the shape \[240, 320, 100\].*more than any recording"):
        read_mat(path, "d_depth")


def test_decoders_write_nothing_to_the_console(commands, tmp_path):
    """In a fresh process, as OpenCV reads its settings when it starts."""
    whole = bytearray(write_video(tmp_path / "x.mp4", 30, codec="libx264").read_bytes())
    start = whole.index(b"mdat") + 60
    for at in range(start, min(start + 3000, len(whole) - 2000), 7):
        whole[at] ^= 0xFF
    (tmp_path / "x.mp4").write_bytes(whole)
    (tmp_path / "y.mp4").write_bytes(whole[: len(whole) // 2])

    code = (
        "import sys; from pathlib import Path\n"
        "from core.protocols import UserError\n"
        "from dataset.clips.decode import ClipSource\n"
        "from dataset.clips.frame_reader import FrameReader\n"
        "for name in ('x.mp4', 'y.mp4'):\n"
        "    for decoder in ('av', 'opencv'):\n"
        "        try: FrameReader(16, decoder=decoder).read(ClipSource(Path(sys.argv[1]) / name), range(30))\n"
        "        except UserError: print(decoder)\n"
    )
    done = subprocess.run([commands.python, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "av\nopencv\n" * 2, "")
