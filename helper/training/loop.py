"""The training loop, for one student or several that share batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.machine import out_of_memory
from core.protocols import Batch, Loader, UserError
from helper.machine.lane_memory import LaneMemory, kept_by
from helper.machine.seeding import rng_state, set_rng_state
from helper.machine.stopper import Interrupted, Stopper
from helper.training.resume import LastState
from helper.training.run import EpochPlace, TrainingRun
from helper.training.stages import Stage

LATER_STAGE = 100_000  # added to the epoch of a later stage, which so draws another order and other crops


def train(lanes: Lanes, loader: Loader) -> None:
    """Train until every student has ended; raise the first exception that stopped one of them."""
    while (place := lanes.next_epoch()) is not None:
        loader.set_epoch(place.epoch + place.stage * LATER_STAGE, place.start_step)
        lanes.start_epoch()
        for i, batch in enumerate(loader, place.start_step):
            lanes.train_step(i, batch)
            if not lanes.want_more(i + 1):
                break
        lanes.finish_epoch()
    if lanes.stopped:
        raise lanes.stopped[0]


class Lanes:
    """Students that train together; usually one.

    Each has its own random generators, so that it computes the same as alone. If one diverges or is interrupted, the
    others continue. memory: checks that all of them fit; if not, all of them end.
    """

    def __init__(self, count: int, memory: LaneMemory | None = None):
        self.alone, self.memory = count == 1, memory
        self.training: list[TrainingRun] = []
        self.together: list[TrainingRun] = []  # students that train the present epoch
        self.stopped: list[Exception] = []
        self._fresh: set[TrainingRun] = set()

    def start(self, run: TrainingRun, stages: Iterator[Stage], state: LastState | None, stop: Stopper) -> None:
        self.training.append(run)
        self._fresh.add(run)
        with self._turn_of(run):
            run.start(stages, state, stop)

    def close(self) -> None:
        for run in self.training:
            run.close()

    @contextmanager
    def _turn_of(self, run: TrainingRun) -> Iterator[None]:
        """Inside, the global random generators are those of this run."""
        if not self.alone:
            set_rng_state(run.rng)
        try:
            yield
        except (Interrupted, UserError) as error:
            self.stopped.append(error)
            self._drop(run)
        except RuntimeError as error:
            if self.memory is None or self.alone or not out_of_memory(error):
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
        return EpochPlace(stage, epoch, min(run.place.start_step for run in self.together))

    def start_epoch(self) -> None:
        for run in list(self.together):
            with self._turn_of(run):
                run.start_epoch()

    def train_step(self, i: int, batch: Batch) -> None:
        for run in list(self.together):
            if not run.place.start_step <= i < run.steps:
                continue
            with self._turn_of(run):
                run.train_step(i, batch)
            if self.memory is not None and run in self._fresh:
                self._fresh.discard(run)
                self.memory.after_first_step(kept_by(run.stage.step.optimizers.values()))

    def want_more(self, step: int) -> bool:
        return any(step < run.steps for run in self.together)

    def finish_epoch(self) -> None:
        for run in list(self.together):
            with self._turn_of(run):
                run.finish_epoch()
