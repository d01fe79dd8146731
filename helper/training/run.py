"""The training loop: of one student (TrainingRun: epochs, validation, checkpoints, interruption) or several (Lanes)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from core import machine
from core.files import atomic_save, atomic_write_json
from core.log import clock, log, progress
from core.protocols import Batch, DataSet, Loader, Progress, UserError
from core.taps import TappedNet
from helper.evaluation.evaluate import TestBatches, evaluate
from helper.evaluation.metrics import Meter
from helper.machine import distributed
from helper.machine.kernels import Hardware
from helper.machine.lane_memory import LaneMemory, kept_by
from helper.machine.seeding import rng_state, set_rng_state
from helper.machine.stopper import Interrupted, Stopper, interrupted
from helper.runs.events import Writer
from helper.runs.folder import RunFolder
from helper.runs.progress import ProgressLine
from helper.runs.trackers import Reports
from helper.training.resume import LastState, Reached, apply_last, write_last
from helper.training.schedule import make_schedule
from helper.training.stages import Stage, TrainingConfig, describe_method
from helper.training.step import DistillStep


def all_finite(module: nn.Module) -> bool:
    """Whether every parameter and buffer is finite; waits for the device once."""
    values = [v.detach() for v in (*module.parameters(), *module.buffers()) if v.is_floating_point()]
    return not values or bool(torch.stack([v.isfinite().all() for v in values]).all())


class EpochPlace(NamedTuple):
    """An epoch of a stage, from its start_step on."""

    stage: int
    epoch: int
    start_step: int


LATER_STAGE = 100_000  # added to the epoch of a later stage, which so draws another order and other crops


def train(lanes: Lanes, loader: Loader) -> None:
    """Train until every student has ended; raise the first exception that stopped one of them, an interruption
    first, as its exit code tells a scheduler that the run can be resumed."""
    while (place := lanes.next_epoch()) is not None:
        loader.set_epoch(place.epoch + place.stage * LATER_STAGE, place.start_step)
        lanes.each(TrainingRun.start_epoch)
        for i, batch in enumerate(loader, place.start_step):
            lanes.train_step(i, batch)
            if all(i + 1 >= run.steps for run in lanes.together):
                break
        lanes.each(TrainingRun.finish_epoch)
    if lanes.stopped:
        raise min(lanes.stopped, key=lambda error: not isinstance(error, Interrupted))


@dataclass(eq=False, kw_only=True)
class TrainingRun:
    """The training of one run; it writes checkpoints, rows and event files.

    Call start(), then for every epoch start_epoch(), train_step() for its batches and finish_epoch(), until it has
    `ended`; always call close(). `place` is the next epoch.

    tb_backend: writer of event files; rows of earlier sessions are written into them again.
    meta: the record of the run in every checkpoint (arch, num_classes, dataset); the method adds its part.
    identity: the settings that a state to resume from must share.
    loader, test_loader: shared by all runs of the process. log: logger of the run.
    full_batches: the method reads whole batches only.
    alone, shown: whether no other student trains in this process, and whether this one shows progress; see Lanes.
    after_epoch: called before an epoch's row is written; returns entries for the row.
    reports: to a tracker of experiments.
    probe: evaluates the student's features, where its images have no labels: (student, autocast) -> as evaluate().
    """

    folder: RunFolder
    data: DataSet
    loader: Loader
    test_loader: TestBatches
    hardware: Hardware
    training: TrainingConfig
    meta: Mapping[str, Any]
    identity: Mapping[str, Any]
    tb_backend: str
    after_epoch: Callable[[], Mapping[str, Any]] = dict
    full_batches: bool = False
    alone: bool = True
    shown: bool = True
    log: logging.Logger = log
    reports: Reports | None = None
    probe: Callable[[TappedNet, torch.dtype | None], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        self.device, self.cfg = self.hardware.device, self.training.loop
        self.schedule = make_schedule(self.training.schedule)
        self.reached = Reached()
        self.ended, self.rng = False, rng_state()
        steps = (
            len(self.data.train_labels) // self.cfg.batch_size
            if self.full_batches and not self.data.full_batches
            else len(self.loader)
        )
        self.steps = min(steps, self.cfg.max_steps or steps)
        self.place = EpochPlace(0, 1, 0)
        self.meter = Meter(self.device)
        self.line: ProgressLine | None = None
        self.writer: Writer | None = None

    def rate(self, stage: Stage, epoch: int) -> float:
        """The learning rate of an epoch: of an earlier stage its own, or the schedule's initial one without warm-up."""
        if stage.constant_lr is not None:
            return stage.constant_lr
        return self.schedule(epoch) if stage.final else self.training.schedule.learning_rate

    def start(self, stages: Iterator[Stage], state: LastState | None, stopper: Stopper) -> None:
        """Prepare the first epoch to train. state: to resume from; None: start from scratch."""
        self.stages, self.stopper = stages, stopper
        done = (0, 0) if state is None else (state["stage"], state["epoch"])
        copy = None if state is None else state.get("rows")
        self.reached.rows = distributed.by_main(lambda: self.folder.trim(done, copy, self.log))
        # the state restores the networks, which hold the results of earlier stages
        self.stage = next(stage for stage in stages if stage.index >= done[0])
        distributed.by_main(self._open_events)
        start_step = 0
        if state is not None:
            apply_last(state, self.stage, self.reached, self.meter, self._whole_meta(), self.log)
            start_step = state["step"]
            state.clear()  # its lane holds it until the run ends
        elif self.stage.step.method.prepares_teacher:
            self._prepare_teacher()
        self._move_to(done[1] + 1, start_step)

    def _open_events(self) -> None:
        if self.tb_backend != "none":
            self.writer = Writer(self.tb_backend, self.folder.tensorboard)
        self._publish(self.reached.rows)

    def _prepare_teacher(self) -> None:
        """One pass over the training set, with an order and views that no epoch uses."""
        started = time.monotonic()
        self.loader.set_epoch(0)
        self.stage.step.objective.prepare_teacher(lambda: progress(self.loader, "the teacher's features"))
        self.log.info("read the teacher's features of the training set in %s", clock(time.monotonic() - started))

    def close(self) -> None:
        for part in (self.line, self.writer):
            if part is not None:
                part.close()
        self.line = self.writer = None

    def _move_to(self, epoch: int, start_step: int = 0) -> None:
        """Go to this epoch, or to the first one of the next stage if the current stage is complete."""
        while epoch > self.stage.epochs:
            following = next(self.stages, None)
            if following is None:
                if machine.is_main():
                    self.folder.previous.unlink(missing_ok=True)
                self.ended = True
                return
            self.stage, epoch = following, 1
        self.place = EpochPlace(self.stage.index, epoch, start_step)

    def start_epoch(self) -> None:
        _, epoch, start_step = self.place
        self.started = time.monotonic()
        self.lr = self.rate(self.stage, epoch)
        self.stage.step.set_lr(self.lr)
        self.stage.step.train()
        size, every = self.cfg.batch_size, self.cfg.print_freq
        shown = self.shown and machine.is_main()
        self.line = ProgressLine(epoch, self.stage.epochs, self.steps, size, every, start_step, self.log, shown)

    def train_step(self, i: int, batch: Batch) -> None:
        stage, epoch = self.stage, self.place.epoch
        result = stage.step(batch, Progress(epoch, stage.epochs, i, self.steps, stage.index))
        unlabelled = len(batch) if batch.labelled == 0 else 0
        self.meter.update(result.loss, result.logits, result.target, result.terms, i, unlabelled)
        number = self.stopper.asked()
        if number and i + 1 < self.steps:
            self.meter = self.meter.merged()
            self._refuse_nan(i, self.meter.read()[1], weights=True)
            self.reached.seconds += time.monotonic() - self.started
            self._save_last(epoch - 1, i + 1)
            raise interrupted(number, f"in epoch {epoch} after step {i + 1}, saved in {self.folder.last}")
        if self.line is not None and self.line.due(i):
            means, bad = self.meter.read()
            if self.alone or distributed.world_size() == 1:  # only rank 0 knows: the others would train on
                self._refuse_nan(i, bad)
            self.line.show(i, means)

    def finish_epoch(self) -> None:
        stage, (_, epoch, start_step) = self.stage, self.place
        if self.line is not None:
            self.line.close()
        self.meter = self.meter.merged()
        means, bad = self.meter.read()
        self._refuse_nan(self.steps - 1, bad, weights=True)
        trained = time.monotonic() - self.started
        accuracy = f"Acc@1 {means['acc']:.3f}, Acc@5 {means['acc_top5']:.3f}, " if "acc" in means else ""
        self.log.info(" * Epoch %d, train: %sLoss %.4f, Time %.2f", epoch, accuracy, means["loss"], trained)
        row: dict[str, Any] = {"stage": stage.index, "epoch": epoch, "lr": self.lr}
        row |= {f"train_{k}": v for k, v in means.items()}
        if stage.final and (epoch % self.cfg.eval_freq == 0 or epoch == stage.epochs):
            row |= self._validate()
            if not math.isfinite(row["test_loss"]):
                self._diverged("the test loss is", self.steps - 1)
        evaluated = time.monotonic() - self.started - trained
        self.reached.seconds += trained + evaluated
        images = (self.steps - start_step) * self.cfg.batch_size
        row |= {
            "seconds_train": trained,
            "seconds_eval": evaluated,
            "seconds_total": self.reached.seconds,
            "img_per_s": min(images, len(self.data.train_labels)) / trained,
            **self.after_epoch(),
        }
        self._record(row)
        self.meter = Meter(self.device)
        number = self.stopper.asked()
        if number and not (stage.final and epoch == stage.epochs):
            raise interrupted(number, f"after epoch {epoch}, saved in {self.folder.last}")
        self._move_to(epoch + 1)

    def _record(self, row: dict[str, Any]) -> None:
        """Best checkpoint, metrics row, last state, event files: in this order. Rank 0 writes; its error ends the run
        in every process."""
        if "test_acc" in row and (row["test_acc"] > self.reached.best_acc or self.stage.step.method.keeps_network):
            self.reached.best_acc, self.reached.best_epoch = row["test_acc"], row["epoch"]
            distributed.by_main(lambda: self._save_best(row))
        distributed.by_main(lambda: self.folder.append(row))
        self.reached.row = row
        self.reached.rows.append(row)
        self._save_last(row["epoch"], 0)
        distributed.by_main(lambda: self._publish([row]))

    def _publish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows into the event files; the tracker gets those that it lacks."""
        if self.writer is not None:
            for row in rows:
                final = self.stage.final and row["stage"] == self.stage.index
                self.writer.scalars(scalars_of(row, final), row["epoch"])
        if self.reports is not None:
            self.reports.rows(self.reached.rows)

    def _eval_autocast(self) -> torch.dtype | None:
        asked, last = self.cfg.eval_precision, self.place.epoch == self.stage.epochs
        return None if asked == "fp32" or (asked == "auto" and last) else self.hardware.autocast

    def _validate(self) -> dict[str, float]:
        step = self.stage.step
        distributed.share_statistics(step.trained)
        deployed = step.deployed().eval()
        row: dict[str, float] = {}
        with step.averaged():
            if step.ema is not None:  # each process averages its own batch-norm statistics
                distributed.share_statistics(deployed)
            found = self._evaluated(step)
        if step.ema is not None:  # the trained weights, in addition to their average
            found["trained"] = next(iter(self._evaluated(step).values()))
        first = f" of the first {self.test_loader.first}" if self.test_loader.first else ""
        for name, result in found.items():
            suffix, what = (f"_{name}", f" of {name}") if row else ("", first)
            row |= {f"test_{k}{suffix}": v for k, v in result.items()}
            self.log.info(" ** test%s: Acc@1 %.3f, Acc@5 %.3f", what, result["acc"], result["acc_top5"])
        return row

    def _evaluated(self, step: DistillStep) -> dict[str, dict[str, float]]:
        autocast, probe = self._eval_autocast(), self.probe
        if probe is None:
            return evaluate(step.deployed().eval(), self.test_loader, self.device, autocast)
        return {"student": distributed.by_main(lambda: probe(step.student, autocast))}

    def _refuse_nan(self, step: int, bad_step: int | None, *, weights: bool = False) -> None:
        """UserError if training has diverged. step: the latest; bad_step: the first whose loss is not finite.

        weights: also check them, before a save: the latest update may make them infinite after a finite loss.
        """
        if bad_step is not None:
            self._diverged("the loss became", bad_step)
        if weights and not all(distributed.gather(all_finite(self.stage.step.trained))):
            self._diverged("the weights became", step)

    def _diverged(self, what: str, step: int) -> NoReturn:
        kept = (
            f"the last good checkpoint is {self.folder.last}"
            if self.folder.last.exists()
            else "there is no checkpoint yet"
        )
        advice = self.stage.step.setup.optim.advice
        raise UserError(
            f"{what} NaN or infinite in epoch {self.place.epoch}, step {step + 1}; {kept}. "
            f"A lower --learning_rate, a lower -b{advice} or --precision fp32 usually helps"
        )

    def _whole_meta(self) -> dict[str, Any]:
        return {**self.meta, **describe_method(self.stage.step.method, self.stage.teacher)}

    def _save_best(self, row: Mapping[str, Any]) -> None:
        self.log.info("saving the best model!")
        meta = self._whole_meta() | {"evaluated_in": "bf16" if self._eval_autocast() else "fp32"}
        deployed = self.stage.step.deployed_state()
        content = {"epoch": row["epoch"], **deployed, "best_acc": self.reached.best_acc, "meta": meta}
        atomic_save(content, self.folder.best)
        shown = ("test_loss", "test_acc", "test_acc_top5", "epoch")
        atomic_write_json({k: row[k] for k in shown}, self.folder.best_metrics)

    def _save_last(self, epoch: int, step: int) -> None:
        """epoch: number of complete ones; step: completed steps of the next one."""
        position = {"epoch": epoch, "step": step, "meter": self.meter.state_dict() if step else None}
        described = {"identity": dict(self.identity), "meta": self._whole_meta()}
        write_last(self.folder, self.stage, position | vars(self.reached) | described)


class Lanes:
    """Students that train together; usually one.

    Each has its own random generators, so that it computes the same as alone. If one diverges or is interrupted, the
    others continue. If their memory does not suffice for all of them, all of them end.
    """

    def __init__(self, count: int, device: torch.device):
        self.alone, self.memory = count == 1, LaneMemory(count, device)
        self.training: list[TrainingRun] = []
        self.together: list[TrainingRun] = []  # students that train the present epoch
        self.stopped: list[Exception] = []
        self._fresh: set[TrainingRun] = set()

    def start(self, run: TrainingRun, stages: Iterator[Stage], state: LastState | None, stop: Stopper) -> None:
        run.alone = self.alone
        self.training.append(run)
        self._fresh.add(run)
        with self._turn_of(run):
            run.start(stages, state, stop)

    def close(self) -> None:
        for run in self.training:
            run.close()

    @contextmanager
    def _turn_of(self, run: TrainingRun) -> Iterator[None]:
        """Inside the context, the global random generators are those of this run."""
        if not self.alone:
            set_rng_state(run.rng)
        try:
            yield
        except (Interrupted, UserError) as error:
            if not self.alone:  # the others may train for hours before it is raised
                run.log.info("%s", error)
            self.stopped.append(error)
            self._drop(run)
        except RuntimeError as error:
            if self.alone or not machine.out_of_memory(error):
                raise
            raise self.memory.exhausted(error) from error
        finally:
            if not self.alone:
                run.rng = rng_state()
        if run.ended and run in self.training:
            self._drop(run)

    def _drop(self, run: TrainingRun) -> None:
        run.close()
        self.training.remove(run)
        self.together = [other for other in self.together if other is not run]

    def next_epoch(self) -> EpochPlace | None:
        """The earliest epoch that a student still has to train; students that need the same epoch share its batches."""
        if not self.training:
            return None
        stage, epoch, _ = min(run.place for run in self.training)
        self.together = [run for run in self.training if run.place[:2] == (stage, epoch)]
        for run in self.together:
            run.shown = run is self.together[0]
        return EpochPlace(stage, epoch, min(run.place.start_step for run in self.together))

    def each(self, action: Callable[[TrainingRun], None]) -> None:
        """Do something for every student that trains the current epoch."""
        for run in list(self.together):
            with self._turn_of(run):
                action(run)

    def train_step(self, i: int, batch: Batch) -> None:
        for run in list(self.together):
            if not run.place.start_step <= i < run.steps:
                continue
            with self._turn_of(run):
                run.train_step(i, batch)
            if run in self._fresh:
                self._fresh.discard(run)
                self.memory.after_first_step(kept_by(run.stage.step.optimizers.values()))


def scalars_of(row: Mapping[str, Any], final: bool) -> dict[str, float]:
    """The published tags of a row of metrics.jsonl, then the learning rate and every loss term.

    An epoch without evaluation lacks the tags of the test set; a first stage (not final) has init_train_loss instead
    of all of them.
    """
    shown = ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss")
    published = {tag: row[tag] for tag in shown if tag in row} if final else {"init_train_loss": row["train_loss"]}
    terms = {k for k in row if k.startswith("train_")} - {"train_acc", "train_acc_top5", "train_loss"}
    prefix = "" if final else "init_"
    return published | {f"{prefix}lr": row["lr"]} | {f"{prefix}loss/{k[6:]}": row[k] for k in sorted(terms)}


def summary(reached: Reached, evaluated_on: str) -> str:
    """The last line of a run's log: last and best accuracy, and the time."""
    return (
        f"last epoch Acc@1 {reached.row['test_acc']:.2f}, best accuracy: {reached.best_acc:.2f} (epoch "
        f"{reached.best_epoch}, chosen on {evaluated_on}, hence optimistic), {clock(reached.seconds)}"
    )
