"""scripts/bench/bench_video.py and bench_vskd.py: what they compare, and what they write."""

import time

import numpy as np
import pytest
import torch

from core.protocols import UserError
from dataset.clips.decode import ClipSource
from dataset.clips.frame_reader import FrameReader
from dataset.clips.lists import Entry
from dataset.clips.views import ClipSettings
from scripts.bench import bench_video, bench_vskd, measuring
from tests.support.commands import squeezed
from tests.support.recordings import left_bright, write_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_video(folder / f"{i}.avi", left_bright(10 + i, i))
    return folder


def test_readers_take_turns_and_other_pixels_are_noticed(clips):
    class Wrong(FrameReader):
        def read(self, source, index):
            return super().read(source, [0] * len(index))

    paths = sorted(clips.iterdir())
    entries = [Entry(ClipSource(p), 0, str(p)) for p in paths]
    settings = ClipSettings(num_segments=4, size=16, short_side=16)
    kinds = {"plain": FrameReader, "counting": bench_video.Counting, "naive": bench_video.Naive, "wrong": Wrong}
    readers = {name: kind(16) for name, kind in kinds.items()}
    found = bench_video.clips_per_second(readers, entries, settings, 2, time.perf_counter)
    assert {name: same for name, (_, same) in found.items()} == dict.fromkeys(kinds, True) | {"wrong": False}
    assert all(speed > 0 for speed, _ in found.values())


def test_the_command_writes_both_tables(clips, tmp_path, commands):
    out = tmp_path / "bench.md"
    sizes = ("--size", 16, "--repeats", 1, "--rounds", 1, "--precision", "fp32")
    done = commands("scripts/bench/bench_video.py", "--clips", clips, *sizes, "--networks", "resnet8", "--clock", "cpu",
                    "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    text = squeezed(out.read_text())
    assert text.count("| yes |") == 5 and "NO" not in text and "seconds of the processor" in text
    assert "| resnet8 | fp32 | training |" in text and "| resnet8 | fp32 | evaluation |" in text
    commands("scripts/bench/bench_video.py", "--clips", tmp_path / "none").refused("holds no .avi, .mp4 or .mkv files")


def test_the_clock_of_the_processor_does_not_count_waiting(monkeypatch):
    monkeypatch.setattr(measuring, "clock", measuring.THREAD_CLOCKS["cpu"])
    assert bench_vskd.median_of(lambda: time.sleep(0.05), 1, CPU) < 0.01
    assert bench_vskd.fields(2, 16, CPU) > 0
    with pytest.raises(UserError, match="use --clock wall"):
        bench_vskd.main(["--device", "cuda", "--clock", "cpu"])


def test_a_step_and_its_loader_are_told_apart(tmp_path, monkeypatch):
    """A loader that takes a while is seen in its own column."""
    from dataset.recordings.actions import ActionTrainLoader

    monkeypatch.setattr(bench_vskd, "BATCH", 2)
    monkeypatch.setattr(bench_vskd, "FRAMES", 8)
    bench_vskd.make_recordings(tmp_path, 4)
    original = ActionTrainLoader.batch

    def slow(self, step, clips=None):
        time.sleep(0.1)
        return original(self, step, clips)

    monkeypatch.setattr(ActionTrainLoader, "batch", slow)
    waited, worked = bench_vskd.loader_share(tmp_path, CPU, 32, 1)
    assert waited >= 0.1 and worked > 0 and np.isfinite(worked)
