#!/usr/bin/env python3
"""Speed of clips and Gramian fields: python scripts/bench/bench_vskd.py [--device cuda] [--clock cpu] [--out FILE.md]

On random clips and windows with the shapes of UTD-MHAD (16 pairs per batch, 8 frames of a 52-frame clip), it measures:
- Gramian fields per second, for batches of windows [16, 3, L] and for single windows;
- the share of time in which a training step waits for its batch, if clips are cached (kd, a TRN over BN-Inception
  teaches resnet18_gaf);
- frames decoded per second, and the bytes of a cached clip.

Figures are medians. `--clock cpu` measures the processor time of one thread, which other work on the machine hardly
changes.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.protocols import Progress, UserError
from dataset.base import data_options
from dataset.clips.decode import ClipSource, read_video
from dataset.clips.frame_cache import FrameCache
from dataset.recordings.utd_mhad import load_utd_mhad
from distiller_zoo import method_dict
from helper.machine.devices import native_bf16
from helper.machine.kernels import tune_allocator
from helper.machine.program import ScriptParser, run_script
from helper.tables.writers import as_markdown
from helper.training.optim import OptimConfig, optimizer
from helper.training.stages import StagePlan
from helper.training.step import StepSetup
from models import model_dict
from models._gaf import gramian_field
from scripts.bench import measuring
from scripts.bench.measuring import THREAD_CLOCKS

BATCH, BATCHES, FRAMES, SIZE = 16, 4, 52, (240, 320)


def median_of(run: Callable[[], object], repetitions: int, device: torch.device) -> float:
    """Seconds of one call, after one that does not count."""
    times = measuring.timed(lambda _: run(), itertools.repeat(None), 1, repetitions, device)
    return float(np.median(times))


def make_recordings(root: Path, pairs: int) -> None:
    """Files in the layout of UTD-MHAD: noise that moves little, so that it compresses as a picture does."""
    import av
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    picture = np.kron(
        rng.integers(0, 255, (SIZE[0] // 16, SIZE[1] // 16, 3), dtype=np.uint8), np.ones((16, 16, 1), "u1")
    )
    for i in range(pairs):
        for subject in (1, 2) if i == 0 else (1,):  # one to test
            stem = f"a{i % 27 + 1}_s{subject + 2 * (i // 108)}_t{i // 27 % 4 + 1}"
            savemat(root / f"{stem}_inertial.mat", {"d_iner": rng.normal(size=(180, 6))})
            with av.open(str(root / f"{stem}_color.avi"), "w") as container:
                stream = container.add_stream("mpeg4", rate=15)
                stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
                for k in range(FRAMES):
                    frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * k, axis=1), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())


def fields(batch: int, length: int, device: torch.device) -> float:
    """Fields (one of a window's axes each) per second."""
    x = torch.randn(batch, 3, length, device=device)
    return 3 * batch / median_of(lambda: gramian_field(x), 20, device)


def loader_share(root: Path, device: torch.device, side: int, steps: int) -> tuple[float, float]:
    """(seconds a step waits for its batch, seconds of the step itself), medians over an epoch of cached clips."""
    options = data_options(root, image_size=side, window=side, modality=("accel", "video"), clip_cache=root / "cache")
    data = load_utd_mhad(options)
    teacher, student = (model_dict[name].fitted(data.shapes) for name in ("trn_bninception", "resnet18_gaf"))
    autocast = torch.bfloat16 if native_bf16(device) else None
    setup = StepSetup(optimizer(OptimConfig(momentum=0.9, weight_decay=0.0005), 0.01), device, autocast)
    kd, plan, network = method_dict["kd"], StagePlan(BATCH, epochs=1), measuring.random_network(teacher, 27)
    train = measuring.step_of(kd, kd.Config(), student, network, data, setup, plan)
    loader = data.train_loader(BATCH, seed=0, device=device)
    for epoch in (1, 2):  # the first does not count
        loader.set_epoch(epoch)
        batches, watch = iter(loader), measuring.Stopwatch(device)
        watch.mark()
        for _ in range(min(steps, len(loader))):
            batch = next(batches)
            watch.mark()
            train(batch, Progress())
            watch.mark()
        seconds = watch.seconds()
    return float(np.median(seconds[::2])), float(np.median(seconds[1::2]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda or cpu (default: cuda if there is one)",
    )
    add("--side", type=int, nargs="+", default=[64, 224], help="sides of clips and fields in pixels")
    add("--steps", type=int, default=BATCHES, choices=range(1, BATCHES + 1), help="number of timed steps")
    add("--clock", default="wall", choices=THREAD_CLOCKS, help="cpu: seconds of the processor, one thread")
    add("--out", type=Path, help="also write the page to this file", metavar="FILE")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if args.clock == "cpu" and device.type != "cpu":
        raise UserError(f"--clock cpu does not measure {device}: use --clock wall")
    if args.clock == "cpu":
        torch.set_num_threads(1)
    tune_allocator()  # as in training
    measuring.clock = THREAD_CLOCKS[args.clock]
    rows: list[tuple[str, str, str]] = []

    def say(what: str, side: int | str, value: str) -> None:
        rows.append((what, str(side), value))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_recordings(root, BATCH * BATCHES)
        video = next(root.glob("*.avi"))
        decoding = median_of(lambda: read_video(video), 5, torch.device("cpu"))
        say("decoding and nothing else", f"{SIZE[1]}x{SIZE[0]}", f"{FRAMES / decoding:.0f} frames/s")
        for side in args.side:
            say(f"Gramian fields, {BATCH} windows at once", side, f"{fields(BATCH, side, device):.0f} /s")
            say("Gramian fields, one window at a time", side, f"{fields(1, side, device):.0f} /s")
            short = side * 256 // 224
            say("cached clip", side, f"{FrameCache(None, short).get(ClipSource(video)).nbytes / 2**20:.2f} MiB")
            load, step = loader_share(root, device, side, args.steps)
            say("waiting for a batch", side, f"{1000 * load:.1f} ms")
            say("training step on it", side, f"{1000 * step:.0f} ms")
            say("loader's share", side, f"{100 * load / (load + step):.1f} %")
    report = measuring.report(__file__, argv, device, [])
    where = report["device"] + ("" if device.type == "cuda" else f", {torch.get_num_threads()} threads")
    of = "processor" if args.clock == "cpu" else "wall clock"
    note = f"{where}; seconds of the {of}; torch {torch.__version__}"
    parts = [note, as_markdown(("what", "side", "value"), rows)]
    measuring.publish("Benchmark: clips and Gramian fields", report, parts, args.out)


if __name__ == "__main__":
    run_script(main)
