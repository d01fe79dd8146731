"""Two ranks walk through the contract cases: see test_ddp.py.

Each rank trains on its own half of a batch; afterwards all parameters and buffers that a method shares must agree.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402 (a script: the paths come first)
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from distiller_zoo._task import chain_of  # noqa: E402
from helper.machine.distributed import ddp, process_group  # noqa: E402
from tests.support.cases import ALL  # noqa: E402
from tests.support.contract import PROGRESS, make_step, parameters_vector, plain_sgd  # noqa: E402
from tests.support.tasks import CASES, PLACE, attached, first_of  # noqa: E402
from tests.support.toys import B  # noqa: E402


def agree(values: torch.Tensor) -> bool:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return all(torch.allclose(parts[0], p, rtol=0, atol=1e-6) for p in parts[1:])


def walk(case: str, rank: int, stage: int) -> list[str]:
    """Train one stage of a case; -1 is the method itself."""
    method, cfg, student, teacher, data = ALL[case]
    build = partial(make_step, method, cfg, student, teacher, data, B, stage=stage)
    step = build(wrap=ddp)
    start = parameters_vector(step)
    step.train()
    for i in range(2):
        step(data.batch(seed=10 * i + rank), PROGRESS)
    trained = parameters_vector(step)
    problems = []
    if not agree(trained):
        problems.append(f"{case}, stage {stage}: ranks disagree")
    if torch.equal(trained, start):
        problems.append(f"{case}, stage {stage}: nothing was trained")
    banks = [b for name, b in step.method.named_buffers() if "memory" in name]
    problems += [f"{case}: a memory bank differs between ranks" for b in banks if not agree(b)]
    return problems


def walk_task(case: str, rank: int) -> list[str]:
    """The same in a loop of one's own, whose DDP holds the whole task."""
    task, data = attached(case), CASES[case][-1]
    task.own_optimizers(plain_sgd)
    trained = list(task.parameters())
    start = torch.cat([p.detach().clone().flatten() for p in trained])
    optimizer, run = plain_sgd(trained, 1.0), DistributedDataParallel(task)
    for i in range(2):
        batch = data.batch(seed=10 * i + rank)
        loss = run(batch.inputs["image"], batch.target, batch.index, **PLACE)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step()
    end = torch.cat([p.detach().flatten() for p in trained])
    return [f"{case} as a task: ranks disagree"] * (not agree(end)) + [f"{case}: nothing trained"] * end.equal(start)


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(ALL)
    with process_group("gloo", 200):
        rank = dist.get_rank()
        problems = [
            p for case in wanted for i in (*range(len(chain_of(ALL[case][0])) - 1), -1) for p in walk(case, rank, i)
        ]
        if not sys.argv[1:]:
            problems += [p for name in ("kd", "crd", "simkd", "cakd") for p in walk_task(first_of(name), rank)]
    if rank == 0:
        print("\n".join(problems) or f"{len(wanted)} cases agree", flush=True)
    sys.stdout.flush()
    # leave at once: gloo's threads were seen to abort a process that ends through the interpreter
    os._exit(1 if problems else 0)


if __name__ == "__main__":
    main()
