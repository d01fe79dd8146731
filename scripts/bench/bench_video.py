#!/usr/bin/env python3
"""Measure clips per second of decoding and augmenting, and the cost of the temporal shift.

python scripts/bench/bench_video.py --clips FOLDER --clock cpu [--out results/bench_video_cpu.md]

One process and one thread. The baseline decodes up to the last wanted frame and converts only the wanted frames. It is
compared with a reader that converts every frame, one that counts the frames first, one that seeks, and the cache of
decoded frames. Readers take turns in every round, and so do TSN and TSM; figures are medians over rounds. The pixels of
all readers are compared. `--clock cpu` measures processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.protocols import UserError
from dataset.clips.decode import ClipSource, open_video, pixels
from dataset.clips.frame_reader import FrameReader, layout, shrunk
from dataset.clips.lists import Entry
from dataset.clips.views import ClipSettings
from helper.machine.kernels import tune_allocator
from helper.machine.program import ScriptParser, run_script
from helper.tables.writers import as_markdown
from models import model_dict
from scripts.bench import measuring
from scripts.bench.measuring import THREAD_CLOCKS

BASELINE = "baseline: decode to the last wanted frame, convert the wanted ones"
CALLS = {"training": 1, "evaluation": 4}  # of each network in turn, in a round


class Naive(FrameReader):
    """Every frame up to the last wanted one is decoded and converted."""

    def read(self, source, index):
        frames, last = [], max(index)
        with open_video(source.path) as container:
            container.streams.video[0].thread_type = "NONE"
            for i, frame in enumerate(container.decode(video=0)):
                frames.append(pixels(frame))
                if i == last:
                    break
        return shrunk(np.stack([frames[i] for i in index]), self.short_side)


class Counting(FrameReader):
    """Whose clips were not seen before: how many frames there are is counted again."""

    def count(self, source):
        return layout.__wrapped__(source.path, 0)[0]


def clips_per_second(readers, entries, settings, rounds, clock):
    """{name: (clips/s, whether the pixels are those of the first reader)}: medians over rounds in which all readers
    take turns. Draws are the same for every reader."""
    times = {name: [] for name in readers}
    wanted, same = None, {}
    for r in range(rounds + 1):  # a first round to warm up, and to fill the cache
        for name, reader in readers.items():
            started = clock()
            clips = [settings.train_view(reader, e, np.random.default_rng([0, i]))[0] for i, e in enumerate(entries)]
            times[name].append(clock() - started)
            wide = [c.expand(-1, 3, -1, -1) for c in clips]
            wanted = wanted or wide
            if r in (0, 1):  # the cache answers from the second round on
                agrees = all(torch.equal(a, b) for a, b in zip(wanted, wide, strict=True))
                same[name] = same.get(name, True) and agrees
    return {name: (len(entries) / float(np.median(times[name][1:])), same[name]) for name in readers}


def shift_overhead(name, size, batch, rounds, clock, dtype):
    """{mode: (seconds of TSN, seconds of TSM, TSM / TSN)} of a batch: medians of rounds in which the two take turns,
    the ratio taken within each."""
    nets = {}
    for kind in ("tsn", "tsm"):
        torch.manual_seed(0)
        nets[kind] = model_dict[f"{kind}:{name}"](num_classes=400).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 8, 3, size, size)
    on = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()

    def seconds(kind, mode):
        net = nets[kind].train(mode == "training")
        started = clock()
        with on, torch.set_grad_enabled(mode == "training"):
            y = net(x)
        if mode == "training":
            y.float().square().mean().backward()
        return clock() - started

    times = {(mode, kind): [] for mode in CALLS for kind in nets}
    for r in range(rounds + 1):
        for mode, calls in CALLS.items():
            turns = ("tsn", "tsm") if r % 2 else ("tsm", "tsn")
            spent = [{kind: seconds(kind, mode) for kind in turns} for _ in range(calls)]
            for kind in nets:
                times[mode, kind].append(float(np.mean([s[kind] for s in spent])))
    out = {}
    for mode in ("training", "evaluation"):
        tsn, tsm = (np.array(times[mode, kind][1:]) for kind in ("tsn", "tsm"))
        out[mode] = tuple(float(np.median(v)) for v in (tsn, tsm, tsm / tsn))
    return out


def main(argv=None):
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--clips", type=Path, required=True, help="folder of videos", metavar="FOLDER")
    add("--repeats", type=int, default=3, help="timed rounds of reading")
    add(
        "--networks",
        nargs="+",
        default=["torchvision:resnet50", "torchvision:mobilenet_v2"],
        help="networks under the shift",
    )
    add("--size", type=int, default=112, help="side of the frames of the networks in pixels")
    add("--batch", type=int, default=1, help="clips of eight frames per batch")
    add("--rounds", type=int, default=9, help="timed rounds of TSN and TSM")
    add("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"), help="precisions (default both)")
    add("--clock", default="wall", choices=THREAD_CLOCKS, help="cpu: processor time; wall: elapsed time")
    add("--out", type=Path, help="also write the page to this file", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tune_allocator()  # as in training
    paths = (
        sorted(p for p in args.clips.glob("*") if p.suffix in (".avi", ".mp4", ".mkv")) if args.clips.is_dir() else []
    )
    if not paths:
        raise UserError(f"--clips {args.clips} holds no .avi, .mp4 or .mkv files")
    entries = [Entry(ClipSource(p), 0, str(p)) for p in paths]
    settings, lines, rows, clock = ClipSettings(), [], [], THREAD_CLOCKS[args.clock]
    with tempfile.TemporaryDirectory() as cache:
        readers = {
            BASELINE: FrameReader(settings.short_side),
            "the same, the frames counted first": Counting(settings.short_side),
            "naive: convert every frame on the way": Naive(settings.short_side),
            "seeking to the key frame before": FrameReader(settings.short_side, seek=True),
            "cache of decoded frames": FrameReader(settings.short_side, cache=Path(cache)),
        }
        speeds = clips_per_second(readers, entries, settings, args.repeats, clock)
        for name, (speed, same) in speeds.items():
            lines.append((name, f"{speed:.2f}", f"{speed / speeds[BASELINE][0]:.2f}", "yes" if same else "NO"))
        size = sum(p.stat().st_size for p in Path(cache).iterdir()) / 2**20
    for name in args.networks:
        for dtype in args.precision:
            overhead = shift_overhead(name, args.size, args.batch, args.rounds, clock, dtype)
            for mode, (tsn, tsm, ratio) in overhead.items():
                rows.append((name, dtype, mode, f"{tsn:.3f}", f"{tsm:.3f}", f"{100 * (ratio - 1):+.1f} %"))
    report = measuring.report(__file__, argv, torch.device("cpu"), [])
    parts = [
        f"{report['device']}, one thread, seconds of the {'processor' if args.clock == 'cpu' else 'wall clock'}, torch "
        f"{torch.__version__}.",
        f"{len(entries)} clips; 8 frames each, shorter side 256, MultiScaleCrop to 224; medians of "
        f"{args.repeats} rounds. The cache takes {size:.0f} MiB.",
        as_markdown(("reader", "clips/s", "times baseline", "same pixels"), lines),
        f"The temporal shift: seconds for {args.batch} clip(s) of 8 frames of {args.size} px, medians of "
        f"{args.rounds} alternating rounds.",
        as_markdown(("network", "", "", "TSN", "TSM", "difference"), rows),
    ]
    measuring.publish("Benchmark: video clips", report, parts, args.out)


if __name__ == "__main__":
    run_script(main)
