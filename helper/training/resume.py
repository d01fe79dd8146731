"""The last state of a run, `<model>_last.pth`: chosen, read, compared, applied and written here.

| entry | content |
|---|---|
| stage, epoch, step | index of the stage, its complete epochs, completed steps of the next one |
| step_state | networks, optimisers, generator of the method, moving average |
| rng | the global generators; ranks: of every process (rng, and step: the method's), if there are several |
| meter | the means of an interrupted epoch, over all processes; None between epochs |
| best_acc, best_epoch, seconds, row, rows | Reached; its row tells other readers that the file is a last state |
| identity | the settings that a run which resumes must share |
| model, peer, ... | what is deployed, as in `<model>_best.pth`, with its meta |

The order of an epoch and its views depend on the seed, the epoch and the step alone, so a loader has no state.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import machine
from core.files import atomic_save
from core.protocols import UserError
from helper.evaluation.metrics import Meter
from helper.machine import distributed
from helper.machine.seeding import rank_seed, rng_state, seed_everything, set_rng_state
from helper.networks.checkpoint import load_file
from helper.runs.folder import RunConfig, RunFolder, previous_of, refuse_differences
from helper.training.stages import Stage


@dataclass
class Reached:
    """How far a run has come. rows: of metrics.jsonl. row: the last of them."""

    best_acc: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


class LastState(dict[str, Any]):
    """The entries of a file that read_last() has verified."""

    def __init__(self, path: Path, entries: Mapping[str, Any]):
        super().__init__(entries)
        self.path = path


def write_last(folder: RunFolder, stage: Stage, entries: Mapping[str, Any]) -> None:
    """Rank 0 writes and the others wait, so that none continues without a saved state. entries: those of the table
    above that are not the stage's."""
    several = distributed.world_size() > 1
    ranks = distributed.gather({"rng": rng_state(), "step": stage.step.rng.get_state()}) if several else []

    def write() -> None:
        state = {
            "stage": stage.index,
            "step_state": stage.step.state_dict(),
            "rng": rng_state(),
            **stage.step.deployed_state(),
            **entries,
        }
        atomic_save(state | ({"ranks": ranks} if several else {}), folder.last, folder.previous)

    distributed.by_main(write)


KINDS: dict[str, type | tuple[type, ...]] = dict.fromkeys(("step_state", "rng", "row", "identity", "meta"), Mapping)
KINDS |= dict.fromkeys(("stage", "epoch", "step", "best_epoch"), int)
KINDS |= {"best_acc": (int, float), "seconds": (int, float), "rows": list, "ranks": list}
OPTIONAL = {"meta", "rows", "ranks"}  # entries that older versions, or one process, did not write


def read_last(
    path: Path, identity: Mapping[str, Any], moved: Collection[str], may_differ: Collection[str] = ()
) -> LastState:
    """UserError if the file is damaged, or belongs to a run with other settings; see refuse_differences()."""
    content = load_file(path, way_out(path), expect_checksum=True)
    missing = KINDS.keys() - OPTIONAL - (content.keys() if isinstance(content, Mapping) else set())
    if missing:
        raise UserError(f"{path} is not the _last.pth of a run: it has no {', '.join(sorted(missing))}")
    if wrong := [k for k, kind in KINDS.items() if k in content and not isinstance(content[k], kind)]:
        raise UserError(
            f"{path} is not the _last.pth of a run: its {wrong[0]} is a {type(content[wrong[0]]).__name__}; "
            f"{way_out(path)}"
        )
    same = dict.fromkeys(may_differ)
    refuse_differences(path, {**content["identity"], **same}, {**identity, **same}, moved)
    return LastState(path, content)


def way_out(path: Path) -> str:
    """What to do about a damaged state."""
    before = previous_of(path)
    if before.exists() and before != path:
        return f"--resume {shlex.quote(str(before))} resumes from the previous state"
    return "--overwrite starts the run from scratch"


def chosen_state(
    asked: RunConfig,
    folder: RunFolder,
    shorter: RunFolder | None,
    identity: Mapping[str, Any],
    moved: Collection[str],
    alone: bool,
) -> LastState | None:
    """The state of --resume PATH, or of the finished run that --extend prolongs; None: the run's own, if there is one.

    Writes nothing. shorter: the folder of that finished run. moved: settings that the user changed from the default.
    """
    if shorter is not None:
        if asked.resume != "auto" or asked.name is not None:
            raise UserError("--extend finds the run to prolong by its settings: leave --resume and --name out")
        if folder.last.exists() and not asked.overwrite:
            return None
        if not shorter.finished.exists():
            raise UserError(
                f"--extend {asked.extend}: {shorter.models} is not a finished run with these settings: train it first"
            )
        return distributed.by_main(lambda: read_last(shorter.last, identity, moved, ("epochs", "extend")))
    if asked.resume == "auto":
        return None
    if not alone:
        raise UserError("--resume PATH belongs to one student: give a single --distill, or leave --resume out")
    path = Path(asked.resume)
    state = distributed.by_main(lambda: read_last(path, identity, moved))
    if asked.overwrite and path.resolve().parent == folder.models.resolve():
        raise UserError(
            f"--overwrite would delete the rows and the best checkpoint that belong to --resume {path}: leave one of "
            "the two out"
        )
    return state


def state_to_resume(
    chosen: LastState | None, folder: RunFolder, identity: Mapping[str, Any], moved: Collection[str], restarted: bool
) -> LastState | None:
    """The state to resume from in an entered folder; None: start. Copies the rows and the best checkpoint of `chosen`.

    restarted: by an elastic launcher; then the run's own state counts.
    """
    if folder.last.exists() and (chosen is None or restarted):
        return read_last(folder.last, identity, moved)
    if chosen is not None:
        folder.adopt(chosen.path.parent)
    return chosen


def apply_last(
    state: LastState, stage: Stage, reached: Reached, meter: Meter, meta: Mapping[str, Any], log: logging.Logger
) -> None:
    """Continue at the state; RunFolder.trim() takes its rows."""
    _refuse_other_maps(state, meta)
    reached.best_acc, reached.best_epoch, reached.seconds = state["best_acc"], state["best_epoch"], state["seconds"]
    reached.row = dict(state["row"])
    try:
        stage.step.load_state_dict(state["step_state"])
        if state["step"] and machine.is_main():  # the state's meter covers all processes
            meter.add(state["meter"])
        _restore_rng(state, stage, log)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if machine.out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{state.path} does not fit the networks and optimisers of this run ({reason}): {way_out(state.path)}"
        ) from error


def _refuse_other_maps(state: LastState, meta: Mapping[str, Any]) -> None:
    """UserError if an older version, which read other features of the teacher, began the run."""
    theirs, mine = state.get("meta", {}).get("shapes_t", {}).keys(), meta["shapes_t"].keys()
    if theirs != mine:
        raise UserError(
            f"{state.path} began with the teacher's features {', '.join(theirs) or 'none'}; this version "
            f"reads {', '.join(mine) or 'none'}: --overwrite starts it from scratch"
        )


def _restore_rng(state: LastState, stage: Stage, log: logging.Logger) -> None:
    """The generators of this process; new ones if the state has another number of processes."""
    set_rng_state(state["rng"])
    ranks, rank = state.get("ranks", [None]), machine.rank()
    if len(ranks) == distributed.world_size():
        if ranks[rank] is not None:
            set_rng_state(ranks[rank]["rng"])
            stage.step.rng.set_state(ranks[rank]["step"].cpu())
        return
    log.info(
        "the state has %d process(es), this run has %d: the order of the data continues, random draws get new seeds",
        len(ranks),
        distributed.world_size(),
    )
    if rank:
        seed = rank_seed(int(state["identity"].get("seed", 0)), rank) + state["epoch"]
        seed_everything(seed)
        stage.step.rng.manual_seed(seed)
