#!/usr/bin/env python3
"""Clips per second of decoding and augmenting, and what the temporal shift costs.

python scripts/bench_video.py --clips FOLDER [--out results/bench_video.md]

One process and one thread. The baseline decodes to the last wanted frame and converts the wanted ones alone; beside it
the naive way, which converts every frame on its way, then seeking, and the cache of decoded frames. The pixels of all
four are compared.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402 (a script: the path comes first)
import torch  # noqa: E402

from dataset.clips import ClipSource  # noqa: E402
from dataset.frame_reader import FrameReader, shrunk  # noqa: E402
from dataset.video import ClipSettings, Entry  # noqa: E402
from helper.checkpoint import atomic_write_text  # noqa: E402
from helper.protocols import UserError  # noqa: E402
from helper.runs import environment  # noqa: E402
from helper.session import run_script  # noqa: E402
from models import model_dict  # noqa: E402

BASELINE = "baseline: decode to the last wanted frame, convert the wanted ones"


class Naive(FrameReader):
    """Every frame up to the last wanted one is decoded and converted."""

    def read(self, source, index):
        import av

        frames, last = [], max(index)
        with av.open(str(source.path), metadata_errors="ignore") as container:
            container.streams.video[0].thread_type = "NONE"
            for i, frame in enumerate(container.decode(video=0)):
                frames.append(frame.to_ndarray(format="rgb24"))
                if i == last:
                    break
        return shrunk(np.stack([frames[i] for i in index]), self.short_side)


def clips_per_second(reader, entries, settings, repeats):
    """(clips/s, the clips of the first round). Draws are the same for every reader."""
    first, started = None, 0.0
    for r in range(repeats + 1):  # a first round to warm up, and to fill the cache
        if r == 1:
            started = time.perf_counter()
        clips = [settings.train_view(reader, e, np.random.default_rng([0, i]))[0] for i, e in enumerate(entries)]
        first = first or [c.expand(-1, 3, -1, -1).clone() for c in clips]
    return repeats * len(entries) / (time.perf_counter() - started), first


def shift_overhead(name, size, batch, rounds):
    """{mode: (seconds of TSN, of TSM)} per batch, the medians of alternating rounds."""
    nets = {}
    for kind in ("tsn", "tsm"):
        torch.manual_seed(0)
        nets[kind] = model_dict[f"{kind}:{name}"](num_classes=400).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 8, 3, size, size)
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for kind, net in nets.items():
            net.train()
            started = time.perf_counter()
            net(x).square().mean().backward()
            times.setdefault(("training", kind), []).append(time.perf_counter() - started)
            net.eval()
            started = time.perf_counter()
            with torch.no_grad():
                net(x)
            times.setdefault(("evaluation", kind), []).append(time.perf_counter() - started)
    return {m: tuple(float(np.median(times[m, k][1:])) for k in ("tsn", "tsm")) for m in ("training", "evaluation")}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=["torchvision:resnet50", "torchvision:mobilenet_v2"])
    parser.add_argument("--size", type=int, default=112, help="of the frames the networks see")
    parser.add_argument("--batch", type=int, default=1, help="clips of eight frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    paths = (
        sorted(p for p in args.clips.glob("*") if p.suffix in (".avi", ".mp4", ".mkv")) if args.clips.is_dir() else []
    )
    if not paths:
        raise UserError(f"--clips {args.clips} holds no .avi, .mp4 or .mkv files")
    entries = [Entry(ClipSource(p), 0, str(p)) for p in paths]
    settings, lines, speeds, wanted = ClipSettings(), [], {}, None
    with tempfile.TemporaryDirectory() as cache:
        readers = {
            BASELINE: FrameReader(settings.short_side),
            "naive: convert every frame on the way": Naive(settings.short_side),
            "seeking to the key frame before": FrameReader(settings.short_side, seek=True),
            "cache of decoded frames": FrameReader(settings.short_side, cache=Path(cache)),
        }
        for name, reader in readers.items():
            speeds[name], clips = clips_per_second(reader, entries, settings, args.repeats)
            wanted = wanted or clips
            same = all(torch.equal(a, b) for a, b in zip(wanted, clips, strict=True))
            lines.append(
                f"| {name} | {speeds[name]:.2f} | {speeds[name] / speeds[BASELINE]:.2f} | {'yes' if same else 'NO'} |"
            )
            print(lines[-1], flush=True)
        size = sum(p.stat().st_size for p in Path(cache).iterdir()) / 2**20
    rows = []
    for name in args.networks:
        for mode, (tsn, tsm) in shift_overhead(name, args.size, args.batch, args.rounds).items():
            rows.append(f"| {name} | {mode} | {tsn:.3f} | {tsm:.3f} | {100 * (tsm / tsn - 1):+.1f} % |")
            print(rows[-1], flush=True)
    env = environment()
    text = "\n".join(
        [
            "# Benchmark: video clips",
            "",
            f"`{shlex.join(['python', 'scripts/bench_video.py', *sys.argv[1:]])}`, {env['cpu']}, one thread, commit "
            f"{env['commit']}.",
            "",
            f"{len(entries)} clips; 8 frames each, shorter side 256, MultiScaleCrop to 224; the cache takes "
            f"{size:.0f} MiB.",
            "",
            "| reader | clips/s | times baseline | same pixels |",
            "|---|---|---|---|",
            *lines,
            "",
            f"The temporal shift: seconds for {args.batch} clip(s) of 8 frames of {args.size} px, medians of "
            f"{args.rounds} alternating rounds.",
            "",
            "| network | | TSN | TSM | difference |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    if args.out:
        atomic_write_text(args.out, text)


if __name__ == "__main__":
    run_script(main)
