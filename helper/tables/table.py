"""From runs to the rows of a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from core.log import clock
from core.protocols import UserError
from distiller_zoo import method_dict
from distiller_zoo._task import chain_of
from distiller_zoo.base import LOGIT_FLAGS
from helper.options.naming import published_name
from helper.options.parse import parse
from helper.options.settings import TrainStudentConfigs, TrainTeacherConfigs, common_flags
from helper.tables.published import Cell
from helper.tables.runs import REPETITION, Run, best, grouped, last, mean_std, network, num_classes
from helper.tables.writers import Content

# settings that define networks and methods; all others are part of the protocol
OF_A_NETWORK = {"model", "model_s", "modality", "modality_s", "modality_t", "pretrained_backbone"}
OF_A_METHOD = {"distill", "weight", "cls", "div", "beta", "kd_T", "init_epochs", "frame_logits", *LOGIT_FLAGS}
OF_A_METHOD |= {"unlabelled", "label_ratio"}
OF_A_TEACHER = {"teacher_weight", "fold_teacher", "teacher_dropout", "teacher_probe", "teacher_image_size"}
APART = {*REPETITION, "deterministic", "dali", "nesterov", "eval_precision"}  # the last two: see protocol()

SHARED = {  # setting of the protocol -> its default, also for runs older than the setting
    f.dest: f.default
    for f in (*common_flags(TrainTeacherConfigs), *common_flags(TrainStudentConfigs))
    if f.role and f.dest not in OF_A_NETWORK | OF_A_METHOD | OF_A_TEACHER | APART
}

# settings that describe_protocol() always names
SPELLED_OUT = {"dataset", "epochs", "batch_size", "learning_rate", "lr_decay_epochs", "lr_decay_rate", "schedule"}
SPELLED_OUT |= {"lr_min", "weight_decay", "precision"}

CHECKSUMS = {"data": "training data", "test_data": "test data", "teacher": "teacher's weights"}  # in an identity
NAMELESS = ("folder", "video")  # data sets whose name does not define their content


def method_settings(identity: dict[str, Any]) -> str:
    """The method's published name and its settings that are not at their defaults; tell_apart() adds the settings in
    which similar cells differ."""
    if "model" in identity:
        return "teacher"
    name = "student alone" if identity["distill"] == "vanilla" else published_name(identity["distill"])
    of_teacher = [k for k in ("teacher_probe", "teacher_image_size") if identity.get(k) is not None]
    settings = "".join(f", {setting_text(identity, k)}" for k in (*off_default(identity), *of_teacher))
    return name + settings + (", images without labels" if identity.get("unlabelled") else "")


def setting_text(identity: dict[str, Any], name: str) -> str:
    """A setting as on the command line."""
    value = identity[name]
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def off_default(identity: dict[str, Any]) -> list[str]:
    """Weights and own settings that differ from the method's defaults under its protocol; none for an unknown
    method."""
    distill = identity["distill"]
    if any(part not in method_dict for part in distill.split("+")):
        return []
    protocol = identity.get("protocol") or "simkd"
    theirs = parse(["--distill", distill, "--protocol", protocol], teacher=False)
    names = ["cls", "div", "beta", "kd_T", *LOGIT_FLAGS, "weight", *theirs.method_flags]
    if distill == "vanilla":  # weights of terms that it does not have
        names = ["cls"]
    said = {pair.partition("=")[0] for pair in identity.get("weight") or ()}
    names = [k for k in names if k not in said and not (k == "beta" and distill in said)]  # set by --weight
    if len(chain_of(theirs.method)) > 1:
        names.append("init_epochs")
    defaults = json.loads(json.dumps({k: theirs.as_dict()[k] for k in names}))
    return [k for k in names if k in identity and identity[k] != defaults[k]]


def from_first_to_last(group: Sequence[Run], column: str) -> str:
    """Means over the runs of a column of metrics.jsonl, in the first and the last epoch of the method's own stage."""
    ends = []
    for run in group:
        rows = [row for row in run.rows if row["stage"] == run.rows[-1]["stage"]]
        ends.append((rows[0].get(column), rows[-1].get(column)))
    if any(value is None for pair in ends for value in pair):
        return ""
    return " → ".join(f"{statistics.mean(values):.3g}" for values in zip(*ends, strict=True))


def own_terms(group: Sequence[Run]) -> str:
    """The unweighted terms of every method of the cell: NAME, and NAME_PART if it has several."""
    parts = group[0].identity.get("distill", "").split("+")
    shown = []
    for part in parts:
        columns = [k for k in group[0].rows[-1] if k == f"train_{part}" or k.startswith(f"train_{part}_")]
        for column in sorted(columns):
            short = column.removeprefix(f"train_{part}").removeprefix("_")
            named = len(parts) > 1 or (len(columns) > 1 and not short)
            if text := from_first_to_last(group, column):
                shown.append(" ".join(([published_name(part)] if named else []) + ([short] if short else []) + [text]))
    return ", ".join(shown)


def side_by_side(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A note on runs that shared one process, and so the order of the data."""
    methods = {r.folder.name: method_settings(r.identity) for g in groups for r in g}
    together = {
        tuple(dict.fromkeys(methods[name] for name in r.parameters.get("lanes", ()) if name in methods))
        for g in groups
        for r in g
    }
    lists = [", ".join(names) for names in sorted(together) if len(names) > 1]
    if not lists:
        return []
    return [f"Trained jointly, on the same batches in the same order, for each seed: {'; '.join(lists)}."]


def checksums(groups: Sequence[Sequence[Run]], rows: Sequence[Sequence[str]], protocols: Sequence[str]) -> list[str]:
    """A note on the hexadecimal numbers in labels and protocols."""
    identities, labels = [run.identity for group in groups for run in group], [row[0] for row in rows]
    told_apart = [
        f"`{name}` of the {what}"
        for name, what in CHECKSUMS.items()
        if any(f", {setting_text(i, name)}" in label for i in identities if i.get(name) for label in labels)
    ]
    shown = told_apart + ["`test set` of the test data"] * any(", test set " in text for text in protocols)
    return [f"Checksums, equal for equal contents: {', '.join(shown)}."] if shown else []


def protocol(run: Run) -> dict[str, Any]:
    """The settings, besides method and networks, that must be equal for two numbers to be comparable."""
    found = {k: run.identity.get(k, default) for k, default in SHARED.items()}
    if run.identity.get("nesterov"):
        found["optimizer"] = "nesterov"
    in_training = run.identity.get("eval_precision") == "train"  # otherwise the last epoch is evaluated in float32
    found["evaluated in"] = run.identity.get("precision") if in_training else "fp32"
    found["processes"] = run.parameters.get("processes", 1)  # each process normalises its own share of a batch
    if found["dataset"] in NAMELESS:
        found["test set"] = run.identity.get("test_data")
    return found | {"evaluated on": run.parameters.get("evaluated_on", "test")}


def describe_protocol(run: Run) -> str:
    """protocol() in one line; settings at their defaults are left out."""
    p = protocol(run)
    rate = f"times {p['lr_decay_rate']:g} after {p['lr_decay_epochs']}"
    if p["schedule"] != "step":
        rate = f"on a {p['schedule']} to {p['lr_min']:g}"
    several = f" over {p['processes']} processes" if p["processes"] > 1 else ""
    text = (
        f"{p['dataset']}, {p['epochs']} epochs, batch {p['batch_size']}{several}, lr {p['learning_rate']:g} {rate}, "
        f"wd {p['weight_decay']:g}, {p['precision']}, evaluated on {p['evaluated on']} in {p['evaluated in']}"
    )
    others = {k: p[k] for k, default in SHARED.items() if k not in SPELLED_OUT and p[k] != default}
    others |= {k: p[k] for k in ("test set",) if k in p}
    return text + "".join(f", {k} {value}" for k, value in others.items())


def tell_apart(groups: list[list[Run]]) -> list[str]:
    """For cells with equal labels: add the settings in which they differ."""
    labels = [(method_settings(g[0].identity), network(g[0]), g[0].parameters.get("arch_t")) for g in groups]
    out = []
    for i, group in enumerate(groups):
        alike = [groups[j][0].identity for j in range(len(groups)) if labels[j] == labels[i]]
        mine = group[0].identity
        named = {*REPETITION, "unlabelled"}  # the folder; the label says that there is one
        different = [k for k in mine if k not in named and any(other.get(k) != mine[k] for other in alike)]
        different = [k for k in different if mine[k] is not None and f", {setting_text(mine, k)}" not in labels[i][0]]
        out.append(labels[i][0] + "".join(f", {setting_text(mine, k)}" for k in different))
    return out


def against_pairs(runs: Iterable[Run], published: Sequence[Cell] = ()) -> Content:
    """One line per method, one column per pair of teacher and student. published: as for table().

    UserError if there is no student, if the numbers of one column come from different protocols, or if two experiments
    fall into one cell.
    """
    groups = grouped(runs)
    students = [(label, g) for label, g in zip(tell_apart(groups), groups, strict=True) if not g[0].is_teacher]
    if not students:
        raise UserError(
            "--pivot shows methods by pair of teacher and student, but all these runs are teachers: train a "
            "student, or leave --pivot out"
        )
    pairs: dict[tuple[str, str], list[tuple[str, list[Run]]]] = {}
    for label, group in students:
        if teacher := group[0].parameters.get("arch_t"):
            pairs.setdefault((teacher, network(group[0])), []).append((label, group))
    for label, group in students:
        if not group[0].parameters.get("arch_t"):  # alone: in every column of this student
            student = network(group[0])
            for pair in [p for p in pairs if p[1] == student] or [("", student)]:
                pairs.setdefault(pair, []).insert(0, (label, group))
    header: list[str] = ["method"]
    table: dict[str, dict[str, str]] = {}
    sources = list(dict.fromkeys(c.source for c in published))
    notes = []
    for (teacher, student), members in pairs.items():
        protocols = {describe_protocol(group[0]) for _, group in members}
        if len(protocols) > 1:
            raise UserError(
                f"the column {teacher} → {student} would mix protocols: {' | '.join(sorted(protocols))}; "
                "choose runs with --root, --dataset or --only, or leave --pivot out"
            )
        header.append(f"{teacher} → {student}" if teacher else student)
        notes.append(f"{header[-1]}: {protocols.pop()}.")
        for label, group in members:
            row = table.setdefault(label, {})
            if header[-1] in row:
                raise UserError(
                    f"two experiments have the label {label} in the column {header[-1]}: choose runs with --root "
                    "or --only"
                )
            numbers = [
                f"{c.published:.2f}" + f" ({sources.index(c.source) + 1})" * (len(sources) > 1)
                for c in published_of(group[0], published)
            ]
            row[header[-1]] = f"{mean_std(last(group))} ({best(group):.2f}) [{len(group)}]"
            row[header[-1]] += f" / {', '.join(numbers)}" if numbers else ""
    rows = [[label, *(row.get(column, "") for column in header[1:])] for label, row in table.items()]
    notes.append("Last epoch, mean ± standard deviation (best epoch, chosen on the test data) [runs]")
    notes[-1] += " / published." if any(" / " in c for r in rows for c in r) else "."
    notes += [f"Published{f' ({k})' * (len(sources) > 1)}: {source}." for k, source in enumerate(sources, 1)]
    return header, rows, notes


def add_published(
    header: list[str], rows: list[list[str]], notes: list[str], groups: Sequence[Sequence[Run]], cells: Sequence[Cell]
) -> None:
    """Add "published" and "source" after the gain, in place, if a row is the same experiment as a published cell.

    groups: the runs of each row. A run with another schedule or other weights is another experiment: its row gets no
    number. A note names the sources, and the accuracy of the teachers there, from which ours may differ.
    """
    at = header.index("gain") + 1
    header[at:at] = ["published", "source"]
    sources = list(dict.fromkeys(c.source for c in cells))
    taught: dict[int, list[str]] = {}  # number of a source -> its teachers
    for row, group in zip(rows, groups, strict=True):
        found = published_of(group[0], cells)
        numbers = [sources.index(c.source) + 1 for c in found]
        row[at:at] = [", ".join(f"{c.published:.2f}" for c in found), ", ".join(f"({k})" for k in numbers)]
        for k, c in zip(numbers, found, strict=True):
            known = not c.alone and not math.isnan(c.teacher_accuracy)
            taught.setdefault(k, []).extend([f"{c.teacher} {c.teacher_accuracy:.2f}"] if known else [])
    for k, teachers in sorted(taught.items()):
        named = f" Accuracy of its teachers: {', '.join(dict.fromkeys(teachers))}." if teachers else ""
        notes.append(f"Published ({k}): {sources[k - 1]}.{named}")


def published_of(run: Run, cells: Sequence[Cell]) -> list[Cell]:
    """The published cells of the same experiment as a run; two publications may have different numbers."""
    if run.is_teacher:
        return []
    fitting = [c for c in cells if c.fits(run.identity, run.parameters.get("arch_t"))]
    return list({(c.published, c.source): c for c in fitting}.values())


def table(runs: Iterable[Run], published: Sequence[Cell] = ()) -> Content:
    """One row per cell. published: numbers to print with the same experiment of ours."""
    groups = grouped(runs)
    alone = {
        (network(g[0]), json.dumps(protocol(g[0]))): statistics.mean(last(g))
        for g in groups
        if g[0].identity.get("distill") == "vanilla"
    }
    protocols = list(dict.fromkeys(describe_protocol(g[0]) for g in groups))
    header = ["method", "network", "teacher", "last epoch", "(best)", "gain", "x chance", "loss", "own term", "runs"]
    header += ["parameters", "MACs", "time"]
    if len(protocols) > 1:
        header.append("protocol")
    rows = []
    for group, label in zip(groups, tell_apart(groups), strict=True):
        first, p = group[0], group[0].parameters
        base = alone.get((network(first), json.dumps(protocol(first))))
        comparable = base is not None and not first.is_teacher and first.identity["distill"] != "vanilla"
        accs = [acc for run in group if (acc := run.parameters.get("teacher_acc")) is not None]
        teacher = "" if first.is_teacher else p.get("arch_t") or ""
        if teacher and len(accs) == len(group):
            teacher += f" {statistics.mean(accs):.2f}"
        row = [
            label,
            network(first),
            teacher,
            mean_std(last(group)),
            f"({best(group):.2f})",
            f"{statistics.mean(last(group)) - base:+.2f}" if base is not None and comparable else "",
            f"{statistics.mean(last(group)) * num_classes(first) / 100:.1f}",
            from_first_to_last(group, "train_loss"),
            own_terms(group),
            str(len(group)),
            f"{p['Deployed params']:.3f} M",
            f"{p['Deployed MACs']:.1f} M",
            clock(statistics.mean(r.parameters["Total time"] * 3600 for r in group)),
        ]
        if len(protocols) > 1:
            row.append(f"[{protocols.index(describe_protocol(first)) + 1}]")
        rows.append(row)
    hardware = dict.fromkeys(
        f"{r.env['cpu']}, {threads(r)}" if not r.env["gpus"] else r.env["gpus"][0] for g in groups for r in g
    )
    numbered = len(protocols) > 1
    notes = [f"Protocol{f' [{i + 1}]' if numbered else ''}: {text}." for i, text in enumerate(protocols)]
    notes += [
        "Last-epoch top-1, mean ± standard deviation over runs; best epoch in brackets, chosen on the test data, hence "
        "optimistic. Parameters and MACs are those at test time. Gain is over the student alone under the same "
        "protocol. Chance = 1 / number of classes. Loss and own term: means over the training set in the first and "
        "the last epoch; the loss is weighted as in that epoch (some weights rise with time), the method's own term is "
        "not.",
        *checksums(groups, rows, protocols),
        *side_by_side(groups),
        f"Seeds: {', '.join(map(str, sorted({r.identity['seed'] for g in groups for r in g})))}.",
        f"Hardware: {'; '.join(hardware)}.",
    ]
    if published:
        add_published(header, rows, notes, groups, published)
    return header, rows, notes


def threads(run: Run) -> str:
    """Of its start and, where they differ, of its continuations."""
    continued = run.env.get("continued", ())
    counts = sorted({run.env["cpu_threads"], *(c["cpu_threads"] for c in continued if "cpu_threads" in c)})
    each = " per process" if run.parameters.get("processes", 1) > 1 else ""
    return f"{' or '.join(map(str, counts))} thread{'' if counts == [1] else 's'}{each}"
