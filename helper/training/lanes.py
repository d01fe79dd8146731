"""Several students in one process, fed with the same batches."""

from __future__ import annotations

from collections.abc import Mapping

from core.machine import out_of_memory
from core.protocols import Batch, Loader, UserError
from helper.machine.lane_memory import LaneMemory, kept_by
from helper.machine.seeding import rng_state, set_rng_state
from helper.machine.stopper import Interrupted
from helper.training.loops import EpochRequest, Fit, Run


def drive(runs: Mapping[Fit, Run], loader: Loader, memory: LaneMemory | None = None) -> None:
    """Feed runs with batches until all have ended. Runs that ask for the same pass share its batches.

    Each keeps generators of its own, so that it computes what it would compute alone. One that diverges or is
    interrupted leaves the others going; the first such exception is raised at the end. memory: watches whether all of
    them fit; if they do not, none goes on.
    """
    alone = len(runs) == 1
    fresh = set() if memory is None else set(runs)
    states = {} if alone else {fit: fit.rng for fit in runs}
    stopped: list[Exception] = []

    def send(fit: Fit, value: tuple[int, Batch] | None, start: bool = False) -> EpochRequest | None:
        if not alone:
            set_rng_state(states[fit])
        try:
            return next(runs[fit]) if start else runs[fit].send(value)
        except StopIteration:
            waiting.pop(fit, None)
        except (Interrupted, UserError) as error:
            stopped.append(error)
            waiting.pop(fit, None)
        except RuntimeError as error:
            if memory is None or memory.lanes == 1 or not out_of_memory(error):
                raise
            raise memory.exhausted(error) from error
        finally:
            if not alone:
                states[fit] = rng_state()
        return None

    waiting: dict[Fit, EpochRequest] = {}
    for fit in runs:
        if (want := send(fit, None, start=True)) is not None:
            waiting[fit] = want
    while waiting:
        stage, epoch, _ = min(waiting.values())
        together = [fit for fit, want in waiting.items() if want[:2] == (stage, epoch)]
        first = min(waiting[fit].start_step for fit in together)
        last = max(fit.steps for fit in together)
        loader.set_epoch(epoch + stage * 100_000, first)
        for i, batch in enumerate(loader, first):
            active = [fit for fit in together if fit in waiting and waiting[fit].start_step <= i < fit.steps]
            for fit in active:
                send(fit, (i, batch))
                if memory is not None and fit in fresh:
                    fresh.discard(fit)
                    memory.after_first_step(kept_by(fit.stage.step.optimizers.values()))
            if i + 1 >= last or not any(fit in waiting for fit in together):
                break
        for fit in [fit for fit in together if fit in waiting]:
            want = send(fit, None)
            if want is not None:
                waiting[fit] = want
    if stopped:
        raise stopped[0]
