"""The one training loop, the one validation loop, and what surrounds them: resume, interruption, bookkeeping."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from core import machine
from core.files import atomic_save, atomic_write_json
from core.log import clock, log
from core.protocols import Batch, DataSet, Loader, Progress, UserError
from helper.evaluation.evaluate import evaluate, open_test
from helper.evaluation.metrics import Meter
from helper.machine import distributed
from helper.machine.seeding import rng_state, seed_everything, set_rng_state
from helper.machine.stopper import Interrupted, Stopper
from helper.networks.checkpoint import load_file
from helper.runs.events import Writer
from helper.runs.folder import RunFolder, previous_of, rows_checksum
from helper.runs.progress import ProgressLine
from helper.training.schedule import undiminished
from helper.training.stages import LoopConfig, Stage, describe_method


def all_finite(module: nn.Module) -> bool:
    """Whether every parameter and buffer is; waits for the device once."""
    values = [v.detach() for v in (*module.parameters(), *module.buffers()) if v.is_floating_point()]
    return not values or bool(torch.stack([v.isfinite().all() for v in values]).all())


class EpochRequest(NamedTuple):
    """A pass over the training set that a run asks for, from its start_step on."""

    stage: int
    epoch: int
    start_step: int


@dataclass(eq=False)
class Fit:
    """One run being trained: stages in, checkpoints, rows and event files out.

    run() is a generator that asks for passes and is sent their batches, so that several runs can share them (drive()).

    schedule: epoch -> learning rate of the final stage; earlier stages keep the one it starts from, whatever warms up,
        or a rate of their own.
    writer: opens empty event files; what earlier processes of the run had to say is told again.
    describe: what every checkpoint's meta says (arch, num_classes, dataset).
    identity: what a run must share with a state to continue from it.
    loader: shared by all runs of the process. log: where the run's messages go. shown: whether progress is shown.
    after_epoch: called before an epoch's row is written; what it returns goes into the row.
    autocast: dtype of the forward pass in training, None for float32.
    """

    folder: RunFolder
    data: DataSet
    device: torch.device
    schedule: Callable[[int], float]
    writer: Callable[[], Writer]
    describe: Mapping[str, Any]
    cfg: LoopConfig
    loader: Loader
    identity: Mapping[str, Any] = field(default_factory=dict)
    full_batches: bool = False
    after_epoch: Callable[[], Mapping[str, Any]] = dict
    log: logging.Logger = log
    shown: bool = True
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.best_acc, self.best_epoch, self.seconds = -1.0, 0, 0.0
        self.ended, self.rng = False, rng_state()
        trial = self.cfg.max_steps and self.cfg.max_steps * self.cfg.batch_size
        self.test_loader = open_test(self.data, self.device, trial)
        steps = len(self.data.train_labels) // self.cfg.batch_size if self.full_batches else len(self.loader)
        self.steps = min(steps, self.cfg.max_steps or steps)
        self.last_row: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl, on rank 0

    @property
    def rows_checksum(self) -> str:
        return rows_checksum(self.rows)

    def rate(self, stage: Stage, epoch: int) -> float:
        """The learning rate of an epoch of a stage."""
        if stage.constant_lr is not None:
            return stage.constant_lr
        return self.schedule(epoch) if stage.final else undiminished(self.schedule)

    def run(self, stages: Iterator[Stage], resume_from: Mapping[str, Any] | None, stopper: Stopper) -> Run:
        """Train all stages to the end, or raise Interrupted.

        Yields a EpochRequest; is then sent (step, batch) for every batch of that pass and None after the last.
        """
        done = (0, 0) if resume_from is None else (resume_from["stage"], resume_from["epoch"])
        copy = None if resume_from is None else resume_from.get("rows")
        self.rows = self.folder.trim(done, copy, self.log) if machine.is_main() else []
        self.last_row = {} if resume_from is None else resume_from["row"]
        with closing(self.writer()) as writer:
            for row in self.rows:
                writer.scalars(scalars_of(row), row["epoch"])
            for stage in stages:
                self.stage = stage
                if stage.index < done[0]:
                    continue  # its results live on in the networks the checkpoint restores
                state = resume_from if resume_from is not None and stage.index == done[0] else None
                yield from self._train_stage(stage, state, stopper, writer)
        if machine.is_main():
            self.folder.previous.unlink(missing_ok=True)
        self.ended = True

    def _train_stage(self, stage: Stage, state: Mapping[str, Any] | None, stopper: Stopper, writer: Writer) -> Run:
        epoch, start_step, meter = 1, 0, Meter(self.device)
        if state is not None:
            self._refuse_other_maps(stage, state)
            stage.step.load_state_dict(state["step_state"])
            self.loader.load_state_dict(state["loader"])
            self.best_acc, self.best_epoch, self.seconds = state["best_acc"], state["best_epoch"], state["seconds"]
            epoch, start_step = state["epoch"] + 1, state["step"]
            if start_step and machine.is_main():  # the state's meter is that of all processes
                meter.load_state_dict(state["meter"])
            self._restore_rng(stage, state)
        for e in range(epoch, stage.epochs + 1):
            yield from self._train_epoch(stage, e, start_step, meter, stopper, writer)
            start_step, meter = 0, Meter(self.device)
            last_of_all = stage.final and e == stage.epochs
            number = stopper.asked()
            if number and not last_of_all:
                self._stop(number, f"after epoch {e}")

    def _refuse_other_maps(self, stage: Stage, state: Mapping[str, Any]) -> None:
        """UserError where a version of the code that read other features of the teacher has begun the run."""
        theirs = state.get("meta", {}).get("shapes_t", {}).keys()
        mine = describe_method(stage.step.method, stage.step.method.cfg, stage.teacher)["shapes_t"].keys()
        if theirs != mine:
            raise UserError(
                f"{self.folder.last} was begun reading {', '.join(theirs) or 'nothing'} of the teacher, which is "
                f"{', '.join(mine) or 'nothing'} now: --overwrite trains it anew"
            )

    def _restore_rng(self, stage: Stage, state: Mapping[str, Any]) -> None:
        """The generators of this process; new ones where the state is of another number of processes."""
        set_rng_state(state["rng"])
        ranks, rank = state.get("ranks", [None]), machine.rank()
        if len(ranks) == distributed.world_size():
            if ranks[rank] is not None:
                set_rng_state(ranks[rank]["rng"])
                stage.step.set_rng(ranks[rank]["step"])
            return
        self.log.info(
            "the state is of %d process(es), this run has %d: the order of the data goes on, random draws start anew",
            len(ranks),
            distributed.world_size(),
        )
        if rank:
            seed = rank_seed(int(self.identity.get("seed", 0)), rank) + state["epoch"]
            seed_everything(seed)
            stage.step.seed_rng(seed)

    def _train_epoch(
        self, stage: Stage, epoch: int, start_step: int, meter: Meter, stopper: Stopper, writer: Writer
    ) -> Run:
        step, started = stage.step, time.monotonic()
        lr = self.rate(stage, epoch)
        step.set_lr(lr)
        step.train()
        line = ProgressLine(
            epoch, stage.epochs, self.steps, self.cfg.batch_size, self.cfg.print_freq, start_step, self.log, self.shown
        )
        try:
            sent = yield EpochRequest(stage.index, epoch, start_step)
            while sent is not None:
                i, batch = sent
                result = step(batch, Progress(epoch, stage.epochs, i, self.steps, stage.index))
                meter.update(result.loss, result.logits, result.target, result.terms, i)
                number = stopper.asked()
                if number and i + 1 < self.steps:
                    meter = meter.merged()
                    self._refuse_nan(epoch, i, meter.read()[1], stage)
                    self.seconds += time.monotonic() - started
                    self._save_last(stage, epoch - 1, i + 1, meter)
                    self._stop(number, f"in epoch {epoch} after step {i + 1}")
                if line.due(i):
                    means, bad = meter.read()
                    self._refuse_nan(epoch, i, bad)
                    line.show(i, means)
                sent = yield None
        finally:
            line.close()
        meter = meter.merged()
        means, bad = meter.read()
        self._refuse_nan(epoch, self.steps - 1, bad, stage)
        trained = time.monotonic() - started
        self.log.info(
            " * Epoch %d, train: Acc@1 %.3f, Acc@5 %.3f, Loss %.4f, Time %.2f",
            epoch,
            means["acc"],
            means["acc_top5"],
            means["loss"],
            trained,
        )
        row: dict[str, Any] = {"stage": stage.index, "epoch": epoch, "lr": lr}
        row |= {f"train_{k}": v for k, v in means.items()}
        if stage.final:
            autocast = self._eval_autocast(stage, epoch)
            row |= self._validate(stage, autocast)
            if not math.isfinite(row["test_loss"]):
                self._diverged("the test loss is", epoch, self.steps - 1)
        evaluated = time.monotonic() - started - trained
        self.seconds += trained + evaluated
        images = (self.steps - start_step) * self.cfg.batch_size
        row |= {
            "seconds_train": trained,
            "seconds_eval": evaluated,
            "seconds_total": self.seconds,
            "img_per_s": min(images, len(self.data.train_labels)) / trained,
            **self.after_epoch(),
        }
        if stage.final and (row["test_acc"] > self.best_acc or stage.step.method.keeps_network):
            self._save_best(stage, epoch, row, autocast)
        if machine.is_main():
            self.folder.append(row)
            self.rows.append(row)
        self.last_row = row
        self._save_last(stage, epoch, 0, meter)
        writer.scalars(scalars_of(row), epoch)

    def _eval_autocast(self, stage: Stage, epoch: int) -> torch.dtype | None:
        exact = self.cfg.eval_precision == "fp32" or (self.cfg.eval_precision == "auto" and epoch == stage.epochs)
        return None if exact else self.autocast

    def _validate(self, stage: Stage, autocast: torch.dtype | None) -> dict[str, float]:
        distributed.share_statistics(stage.step.trained)
        deployed = stage.step.deployed().eval()
        row: dict[str, float] = {}
        with stage.step.averaged():
            if stage.step.ema is not None:  # each process averages batch-norm statistics of its own
                distributed.share_statistics(deployed)
            found = evaluate(deployed, self.test_loader, self.device, autocast)
        if stage.step.ema is not None:  # the weights trained, beside their average
            found["trained"] = next(iter(evaluate(deployed, self.test_loader, self.device, autocast).values()))
        for name, result in found.items():
            suffix = "" if not row else f"_{name}"
            row |= {f"test_{k}{suffix}": v for k, v in result.items()}
        first = f" of the first {self.test_loader.first}" if self.test_loader.first else ""
        self.log.info(f" ** test{first}: Acc@1 %.3f, Acc@5 %.3f", row["test_acc"], row["test_acc_top5"])
        for name in (k.removeprefix("test_acc_top5_") for k in row if k.startswith("test_acc_top5_")):
            self.log.info(
                " ** test of %s: Acc@1 %.3f, Acc@5 %.3f", name, row[f"test_acc_{name}"], row[f"test_acc_top5_{name}"]
            )
        return row

    def _refuse_nan(self, epoch: int, step: int, bad_step: int | None, stage: Stage | None = None) -> None:
        """Raise UserError where training has diverged. step: the latest; bad_step: the first with a loss not finite.

        stage: also look at the weights, which the latest update may have spoilt after a finite loss. Before a save.
        """
        what = "the loss is"
        if bad_step is None:
            if stage is None or all_finite(stage.step.trained):
                return
            what, bad_step = "the weights are", step
        self._diverged(what, epoch, bad_step)

    def _diverged(self, what: str, epoch: int, step: int) -> NoReturn:
        kept = (
            f"the last good checkpoint is {self.folder.last}"
            if self.folder.last.exists()
            else "there is no checkpoint yet"
        )
        advice = self.stage.step.setup.optim.advice
        raise UserError(
            f"{what} not finite since epoch {epoch}, step {step + 1}; {kept}. "
            f"A lower --learning_rate, a lower -b{advice} or --precision fp32 usually help"
        )

    def _save_best(self, stage: Stage, epoch: int, row: Mapping[str, Any], autocast: torch.dtype | None) -> None:
        self.best_acc, self.best_epoch = row["test_acc"], epoch
        if not machine.is_main():
            return
        self.log.info("saving the best model!")
        step = stage.step
        meta = {**self.describe, **describe_method(step.method, step.method.cfg, stage.teacher)}
        meta["evaluated_in"] = "bf16" if autocast else "fp32"
        with step.averaged():
            atomic_save(
                {
                    "epoch": epoch,
                    "model": step.student.model.state_dict(),
                    "best_acc": self.best_acc,
                    **({} if step.peer is None else {"peer": step.peer.model.state_dict()}),
                    **step.method.deployed_state(),
                    "meta": meta,
                },
                self.folder.best,
            )
        atomic_write_json(
            {k: row[k] for k in ("test_loss", "test_acc", "test_acc_top5")} | {"epoch": epoch},
            self.folder.best_metrics,
        )

    def _save_last(self, stage: Stage, epoch: int, step: int, meter: Meter) -> None:
        """Everything a continuation needs. epoch: how many are complete; step: how far the next one has come.

        Rank 0 writes, and the others wait for it: none trains on without a state to go back to.
        """
        several = distributed.world_size() > 1
        ranks = distributed.gather({"rng": rng_state(), "step": stage.step.rng_state()}) if several else []
        if machine.is_main():
            self._write_last(stage, epoch, step, meter, {"ranks": ranks} if several else {})
        distributed.barrier()

    def _write_last(self, stage: Stage, epoch: int, step: int, meter: Meter, more: Mapping[str, Any]) -> None:
        atomic_save(
            {
                **more,
                "stage": stage.index,
                "epoch": epoch,
                "step": step,
                "step_state": stage.step.state_dict(),
                "loader": self.loader.state_dict(),
                "meter": meter.state_dict(),
                "rng": rng_state(),
                "best_acc": self.best_acc,
                "best_epoch": self.best_epoch,
                "seconds": self.seconds,
                "row": self.last_row,
                "rows": self.rows,
                "identity": dict(self.identity),
                **stage.step.deployed_state(),
                "meta": {**self.describe, **describe_method(stage.step.method, stage.step.method.cfg, stage.teacher)},
            },
            self.folder.last,
            self.folder.previous,
        )

    def _stop(self, number: int, where: str) -> None:
        name = signal.Signals(number).name
        raise Interrupted(f"{name}: stopped {where}, all of it kept in {self.folder.last}", 128 + number)


def rank_seed(seed: int, rank: int) -> int:
    """Where the random draws of a process start: those of rank 0 as of a process alone."""
    return (seed + 1_000_003 * rank) % 2**63


Run = Generator[EpochRequest | None, tuple[int, Batch] | None, None]


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The published tags of a row of metrics.jsonl, then the learning rate and every loss term; a first stage, which is
    not evaluated, has init_train_loss in place of the published ones."""
    shown = ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss")
    published = {tag: row[tag] for tag in shown} if "test_acc" in row else {"init_train_loss": row["train_loss"]}
    terms = {k for k in row if k.startswith("train_")} - {"train_acc", "train_acc_top5", "train_loss"}
    prefix = "" if "test_acc" in row else "init_"
    return published | {f"{prefix}lr": row["lr"]} | {f"{prefix}loss/{k[6:]}": row[k] for k in sorted(terms)}


# what a state must hold, and of which type
STATE: dict[str, type | tuple[type, ...]] = dict.fromkeys(("step_state", "loader", "rng", "row", "identity"), Mapping)
STATE |= dict.fromkeys(("stage", "epoch", "step", "best_epoch"), int) | {
    "best_acc": (int, float),
    "seconds": (int, float),
}


def read_last(path: Any) -> dict[str, Any]:
    """The state of an unfinished run, for Fit.run(resume_from=...)."""
    path = Path(path)
    before = previous_of(path)
    way_out = f"--resume {before} continues from the state before it" if before.exists() and before != path else ""
    state = load_file(path, way_out or "--overwrite starts the run from scratch", expect_checksum=True)
    missing = STATE.keys() - (state.keys() if isinstance(state, Mapping) else set())
    if missing:
        raise UserError(f"{path} is not the _last.pth of a run: it has no {', '.join(sorted(missing))}")
    if wrong := [k for k, kind in STATE.items() if not isinstance(state[k], kind)]:
        raise UserError(
            f"{path} is not the _last.pth of a run: its {wrong[0]} is a {type(state[wrong[0]]).__name__}; "
            f"{way_out or '--overwrite starts the run from scratch'}"
        )
    return state


def summary(row: Mapping[str, Any], best_acc: float, best_epoch: int, seconds: float, evaluated_on: str) -> str:
    return (
        f"last epoch Acc@1 {row['test_acc']:.2f}, best accuracy: {best_acc:.2f} (epoch {best_epoch}, "
        f"selected on what it is reported on: {evaluated_on}), {clock(seconds)}"
    )
