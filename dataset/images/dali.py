"""Image folders decoded by NVIDIA DALI (--dali cpu|gpu), with the batches, order and shards of
dataset/images/imagenet.py.

The reader's label is the sample's position in the training set, and the class is looked up on the device, so methods
that need positions (CRD) work as with any other loader. Each epoch has its own pipeline, over this process's files in
the order of (seed, epoch). A run resumes with any number of processes: at the start of an epoch with the same views,
within an epoch with other views.

The augmentation is torchvision's RandomResizedCrop and RandomHorizontalFlip with the same constants (area 0.08 to 1,
aspect 3/4 to 4/3 drawn log-uniformly, 10 attempts; the SimKD toolbox's pipeline has area 0.1 to 1, aspect 0.8 to 1.25,
100 attempts). Differences from torchvision: the crop is taken while decoding; if no attempt fits the
image, DALI takes the largest crop of a permitted aspect at a random position, torchvision the central one; DALI's
triangular filter replaces Pillow's antialiased bilinear one, and values differ by rounding; --dali gpu decodes with
nvJPEG, whose colours differ by up to a few levels. Random draws depend on (seed, epoch, rank) and differ from those of
the workers. Evaluation always decodes through the workers, so that numbers are comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.log import log
from core.packages import needed
from core.protocols import Batch, Loader, UserError
from dataset.base import DataOptions
from dataset.images.files import Files, PictureError, picture, scaled
from dataset.order import Plan, seed_for

PACKAGE = "nvidia-dali-cuda120"
PREFETCH = 2  # batches DALI decodes ahead
ASPECT, AREA, ATTEMPTS = [3 / 4, 4 / 3], [0.08, 1.0], 10


def require(kind: str, device: torch.device) -> None:
    """UserError if DALI, or the GPU for --dali gpu, is missing."""
    needed("nvidia.dali", f"--dali {kind}", PACKAGE)
    if kind == "gpu" and device.type != "cuda":
        raise UserError("--dali gpu needs a CUDA device, but this machine has none: use --dali cpu")


def pipeline(
    paths: Sequence[str],
    positions: Sequence[int],
    batch_size: int,
    size: int,
    seed: int,
    kind: str,
    device: torch.device,
    threads: int,
) -> Any:
    """Built: yields uint8 [batch_size, size, size, 3] and positions [batch_size, 1]; after the last file it starts
    again."""
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali import types as dali_types

    types: Any = dali_types  # created at run time
    decoder, place = ("mixed", "gpu") if kind == "gpu" else ("cpu", "cpu")

    @pipeline_def
    def described() -> Any:
        encoded, position = fn.readers.file(
            files=list(paths), labels=list(positions), random_shuffle=False, name="Reader"
        )
        images: Any = fn.decoders.image_random_crop(
            encoded,
            device=decoder,
            output_type=types.RGB,
            random_aspect_ratio=ASPECT,
            random_area=AREA,
            num_attempts=ATTEMPTS,
        )
        # without a crop this saves half a pass over the pixels compared with resize and flip
        images = fn.resize_crop_mirror(
            images,
            device=place,
            size=(size, size),
            crop=(size, size),
            mirror=fn.random.coin_flip(),
            interp_type=types.INTERP_TRIANGULAR,
        )
        return images, position

    built = described(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        seed=seed,
        prefetch_queue_depth=PREFETCH,
    )
    built.build()
    return built


class DaliLoader(Loader):
    """Training batches from DALI. UserError without DALI, without a GPU for it, or with augmentations that only the
    workers have."""

    def __init__(self, files: Files, plan: Plan, size: int, device: torch.device, options: DataOptions):
        kind = str(options.stream.dali)
        require(kind, device)
        if options.stream.augment != "none" or options.stream.random_erase or options.stream.reduced_decode:
            raise UserError(
                f"--dali {kind} can only crop and flip: leave out --augment, --random_erase and --reduced_decode, or "
                "leave out --dali"
            )
        super().__init__(plan.steps)
        self.files, self.plan, self.size, self.device, self.kind = files, plan, size, device, kind
        self.labels = files.labels.to(device)
        self.allowed, self.threads = options.stream.skip_corrupt, max(1, options.num_workers)
        self.unreadable: dict[int, str] = {}  # position -> why
        self.set_epoch(1)

    def end_epoch(self) -> dict[str, int]:
        """For the epoch's row: the number of unreadable images of this process so far."""
        return {"skipped_images": len(self.unreadable)} if self.allowed else {}

    def batches(self, start: int) -> Iterator[Batch]:
        places = [[position for position, _ in batch] for batch in self.plan.places(self.epoch, 0)]
        step = start
        while step < self.steps:
            try:
                for batch in self._run(places, step):
                    yield batch
                    step += 1
            except RuntimeError as error:
                if "pipeline" not in str(error):
                    raise
                self._find_unreadable(places[step : step + PREFETCH + 2], error)

    def _run(self, places: Sequence[Sequence[int]], start: int) -> Iterator[Batch]:
        """Batches from step `start` on, of a new pipeline."""
        mine = [[self._readable(position) for position in batch] for batch in places]
        flat = [position for batch in mine[start:] for position in batch]
        size = len(mine[0])
        paths = [str(self.files.root / self.files.paths[position]) for position in flat]
        seed = seed_for("dali", self.plan.batching.seed, self.epoch, self.plan.batching.rank, start) % 2**31
        built = pipeline(paths, flat, size, self.size, seed, self.kind, self.device, self.threads)
        todo = mine[start:]
        for _ in todo[:PREFETCH]:  # not run(), which would prefetch batches that are not needed
            built.schedule_run()
        for step, positions in enumerate(todo):
            images, numbers = built.share_outputs()
            # a short last batch was padded with files from the start
            image = scaled(self._tensor(images)[: len(positions)])
            index = torch.from_numpy(np.array(numbers.as_array())).long().flatten()[: len(positions)]
            built.release_outputs()
            if step + PREFETCH < len(todo):
                built.schedule_run()
            index = index.to(self.device, non_blocking=True)
            yield Batch({"image": image}, self.labels[index], index)

    def _tensor(self, images: Any) -> Tensor:
        """uint8 [B, H, W, 3] on the device; on a CPU it is DALI's own memory: read it before it is released."""
        if self.kind == "cpu":
            return torch.from_dlpack(images.as_tensor()).to(self.device)
        from nvidia.dali.plugin.pytorch import feed_ndarray

        whole = images.as_tensor()
        out = torch.empty(whole.shape(), dtype=torch.uint8, device=self.device)
        feed_ndarray(whole, out, cuda_stream=torch.cuda.current_stream(self.device))
        return out

    def _readable(self, position: int) -> int:
        """The image itself, or the next one that can be read."""
        for tried in range(len(self.files)):
            at = (position + tried) % len(self.files)
            if at not in self.unreadable:
                return at
        raise UserError(f"none of the {len(self.files)} images can be read")

    def _find_unreadable(self, places: Sequence[Sequence[int]], error: RuntimeError) -> None:
        """DALI does not name the file that it could not decode: check the files read so far. The UserError names
        one."""
        found = {}
        for position in {self._readable(p) for batch in places for p in batch}:
            try:
                picture(self.files.root / self.files.paths[position])
            except PictureError as damage:
                found[position] = str(damage)
        if not found:
            reason = next((line for line in reversed(str(error).splitlines()) if "failure" in line.lower()), "")
            raise UserError(f"DALI cannot read images that Pillow reads: {reason or error}; leave --dali out")
        if not self.allowed:
            raise UserError(f"{next(iter(found.values()))}{PictureError.advice}")
        for reason in found.values():
            log.info("skipped: %s", reason)
        self.unreadable |= found
