"""What every method, of the registry or of a test, must keep; over two ranks too (ddp_walk.py)."""

from __future__ import annotations

import copy
from itertools import islice

import torch

from core.protocols import Progress
from helper.training.stages import StagePlan, build_stages
from helper.training.step import StepSetup

PROGRESS = Progress(epoch=60, epochs=100)


def plain_sgd(params, scale):
    """No weight decay: whatever moves was moved by a gradient."""
    return torch.optim.SGD([{"params": list(params), "lr_scale": scale}], lr=0.1 * scale, momentum=0.9)


def make_step(method, cfg, student, teacher, data, batch_size, *, seed=0, stage=-1, source=None, **setup):
    """The step of one stage (the last by default), built from a fixed seed."""
    torch.manual_seed(seed)
    stages = build_stages(
        method,
        cfg,
        student,
        teacher() if teacher else None,
        data,
        StepSetup(plain_sgd, **({"wrap": lambda module: module} | setup)),
        StagePlan(batch_size=batch_size, epochs=100, init_epochs=1),
        source,
    )
    # a later stage freezes what an earlier one trains: go no further than asked
    step = (list(stages)[-1] if stage == -1 else next(islice(stages, stage, None))).step
    if step.method.prepares_teacher:
        step.objective.prepare_teacher(lambda: [data.batch(seed=i) for i in range(2)])
    return step


def leaves(loss):
    """Parameters the loss really differentiates, registered or not."""
    found, todo, seen = {}, [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        todo += [n for n, _ in node.next_functions]
    return found


def frozen_state(step):
    net = getattr(step.teacher, "net", None)
    return None if net is None else copy.deepcopy(net.state_dict())


def check_contract(make, batch, num_classes):
    """make() builds the same step every time."""
    from distiller_zoo._math import weighted_sum

    step = make()
    step.train()
    teacher_before = frozen_state(step)
    prepared = step.method.prepare(batch)
    s, t = step.objective.features(prepared)
    weights = step.method.weights(PROGRESS)
    terms = step.objective.main_terms(s, t, prepared, PROGRESS, weights)
    loss = weighted_sum(terms, weights)
    main = {id(p) for g in step.optimizers["main"].param_groups for p in g["params"]}
    reached = leaves(loss).keys()
    assert reached <= main, "the loss differentiates a parameter no optimiser holds"
    assert main <= reached, "an optimiser holds a parameter the loss never reaches"
    assert terms.keys() <= weights.keys(), "a term without a weight"
    del loss, s, t, terms

    before = {n: p.detach().clone() for n, p in step.trained.named_parameters()}
    for _ in range(2):
        result = step(batch, PROGRESS)
    assert result.logits.shape == (len(batch), num_classes) and result.target.shape == (len(batch),)
    assert all(torch.isfinite(v) and v.ndim == 0 for v in (*result.terms.values(), result.loss))
    owned = [id(p) for o in step.optimizers.values() for g in o.param_groups for p in g["params"]]
    assert len(owned) == len(set(owned)), "a parameter sits in two optimisers"
    trained = {id(p) for p in step.trained.parameters()}
    assert set(owned) <= trained, "an optimiser holds a parameter outside the root"
    left_out = {id(p) for p in step.method.unused(step.student)}
    isolated = {id(p) for phase in step.objective.isolated for p in phase.params()}
    teacher_owned = {id(p) for p in step.teacher.net.parameters()} if hasattr(step.teacher, "net") else set()
    for name, p in step.trained.named_parameters():
        if id(p) in left_out | teacher_owned or (not p.requires_grad and id(p) not in isolated):
            assert torch.equal(before[name], p), f"{name} must not move"
        else:
            assert id(p) in owned, f"{name} has no optimiser"
            assert not torch.equal(before[name], p), f"{name} never moved"
    if teacher_before is not None:
        now = step.teacher.net.state_dict()
        assert all(torch.equal(v, now[k]) for k, v in teacher_before.items()), "the teacher changed"

    predict = step.deployed().eval()
    with torch.no_grad():
        out = predict(batch.inputs)
        assert next(iter(out)) == "student" and out["student"].shape == (len(batch), num_classes)
        again = make()
        again.load_state_dict(copy.deepcopy(step.state_dict()))  # an optimiser takes over the tensors it is given
        restored = again.deployed().eval()(batch.inputs)
    assert out.keys() == restored.keys()
    assert all(torch.equal(out[k], restored[k]) for k in out), "state_dict does not restore the deployed model"
    step.train()
    again.train()
    torch.manual_seed(3)
    one = step(batch, PROGRESS)
    torch.manual_seed(3)
    two = again(batch, PROGRESS)
    assert torch.equal(one.loss, two.loss), "state_dict does not restore training"
    moved = [parameters_vector(s).nan_to_num() for s in (step, again)]  # a thin network may diverge by now
    assert torch.equal(*moved), "state_dict does not restore the optimisers"


def parameters_vector(step):
    return torch.cat(
        [p.detach().flatten() for o in step.optimizers.values() for g in o.param_groups for p in g["params"]]
    )
