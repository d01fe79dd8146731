#!/usr/bin/env python3
"""Time of a training step: python scripts/bench/bench.py --methods all

Other measurements: --switches, --bare, --students, --warm_cache, --lanes, --floor.

Every configuration runs in its own process; compared configurations take turns (A B A B ...), and every ratio is
computed within a round, so that a slow phase of the machine affects both. The report shows medians and the range over
rounds. Data: random images of the shape and number of CIFAR-100, or the real set with --data_folder. Teachers have
random weights: arithmetic does not depend on them. Parts of one report may be measured separately (--merge).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json
from core.option import whole
from core.protocols import UserError
from distiller_zoo import method_dict
from distiller_zoo.base import Distiller
from helper.machine.devices import pick_autocast, pick_device
from helper.machine.program import ScriptParser, run_script
from helper.tables.writers import as_markdown
from models import model_for
from scripts.bench import measuring
from scripts.bench.bench_worker import KINDS
from scripts.bench.measuring import compare, running, spread, take_turns
from scripts.bench.usual_way import WEIGHTS

REFERENCE = "kd"  # what a method's overhead is measured against
TIMES = ("step_s", "bare_step_s", "loader_s")
CIFAR = (50_000, 10_000)  # training and test images of an epoch with its validation
OVERHEAD, OVER_ARITHMETIC = 1.6, 1.25  # limits of a step's time over kd's, and over what its multiplications cost
GAIN = {"cpu": 2.0, "cuda": 8.0}  # over the baseline, at least
EPOCHS = 240  # of a CIFAR-100 run
MINUTES = {"ours kd": 4.0, "ours simkd": 4.0, "cached kd": 2.0}  # that such a run may take on a GPU, at most
PLAIN = ["--compile", "none"]  # what switches are compared with, on every device
# name -> (flags or request that switch it over, whether the default has it on)
SWITCHES: dict[str, tuple[dict[str, Any], bool]] = {
    "bf16": ({"precision": "fp32"}, True),
    "channels_last": ({"flags": ["--channels_last", "off"]}, True),
    "fused_optimizer": ({"flags": ["--fused_optimizer", "off"]}, True),
    "depthwise_fp32": ({"flags": ["--depthwise_fp32", "off"]}, True),
    "allocator": ({"allocator": False}, True),
    "fold_teacher": ({"flags": ["--fold_teacher"]}, False),
    "compile_teacher": ({"flags": ["--compile", "default", "--compile_parts", "teacher"]}, False),
    "compile_student": ({"flags": ["--compile", "default", "--compile_parts", "student"]}, False),
    "compile_loss": ({"flags": ["--compile", "default", "--compile_parts", "loss"]}, False),
    "compile_all": ({"flags": ["--compile", "default", "--compile_parts", "student", "teacher", "loss"]}, False),
    "reduce_overhead": (
        {"flags": ["--compile", "reduce-overhead", "--compile_parts", "student", "teacher", "loss"]},
        False,
    ),
}


class Subject(measuring.Subject):
    """kind: ours, cached, bare or baseline. method: several, separated by commas, share each teacher forward.
    name: what is special about it."""

    def __init__(self, kind: str, method: str, dtype: str, name: str = "", request: dict[str, Any] | None = None):
        super().__init__(__file__, f"{kind} {method} {dtype} {name}".strip(), request or {})
        self.kind, self.method, self.dtype = kind, method, dtype

    def start(self, args: argparse.Namespace) -> None:
        common = {k: getattr(args, k) for k in ("teacher", "student", "images", "data_folder")}
        own = {"kind": self.kind, "method": self.method, "precision": self.dtype, "flags": []}
        self.request = own | common | dict(self.request)
        super().start(args)

    def finish(self, args: argparse.Namespace) -> None:
        if args.profile and self.kind != "baseline":
            path = Path(args.profile) / f"trace_{self.label.replace(' ', '_').replace(',', '+')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.once |= self.ask(profile={"path": str(path)})
        super().finish(args)

    def row(self, batch_size: int) -> dict[str, Any]:
        step = self.median("step_s")
        row = {"label": self.label, "kind": self.kind, "method": self.method, "dtype": self.dtype}
        row |= {key: self.median(key) for key in TIMES if key in self.turns[0]}
        row |= {"step_s_min": min(t["step_s"] for t in self.turns), "step_s_max": max(t["step_s"] for t in self.turns)}
        row["img_s"] = batch_size / step
        if "bare_step_s" in row:
            row |= {"bare_img_s": batch_size / row["bare_step_s"], "loader_share": row["loader_s"] / step}
            row["loader_processes_mb"] = self.turns[-1]["loader_processes_mb"]
        row |= {key: self.turns[-1][key] for key in ("peak_mb", "loss")} | self.once
        if "eval_img_s" in row:
            for key in ("eval_img_s", "eval_img_s_train"):
                evaluating, training = CIFAR[1] / row[key], CIFAR[0] * step / batch_size
                row[key.replace("img_s", "share")] = evaluating / (training + evaluating)
        if "matrix_flops" in self.turns[0] and "step_macs" in row:
            row["step_flops"] = 2 * row["step_macs"] * batch_size
            row["matrix_flops"] = self.median("matrix_flops")
            reached = [row["step_flops"] / t["step_s"] / t["matrix_flops"] for t in self.turns]
            row["matrix_share"] = statistics.median(reached)
        return row | {"turns": self.turns}


def ratio(what: str, slow: Sequence[Subject], fast: Sequence[Subject]) -> dict[str, Any]:
    """How many times longer `slow` take, one after the other, than `fast`, per round; median and range."""
    labels = (" + ".join(s.label for s in side) for side in (slow, fast))
    out: dict[str, Any] = dict(zip(("what", "slow", "fast"), (what, *labels), strict=True))
    for key, name in (("step_s", "ratio"), ("bare_step_s", "ratio_without_loader")):
        if any(key not in s.turns[0] for s in (*slow, *fast)):
            continue
        rounds = [
            sum(s.turns[i][key] for s in slow) / sum(s.turns[i][key] for s in fast) for i in range(len(fast[0].turns))
        ]
        out |= spread(name, rounds)
    return out


Measured = tuple[list[Subject], list[dict[str, Any]]]  # the subjects to report, and their ratios


def compared(
    args: argparse.Namespace, *pairs: tuple[str, Sequence[Subject], Sequence[Subject]], alone: Sequence[Subject] = ()
) -> Measured:
    """Measure in turns. pairs: what a ratio shows, the slow subjects, the fast ones. alone: further subjects."""
    subjects = list(dict.fromkeys([*alone, *(s for _, slow, fast in pairs for s in (*fast, *slow))]))
    compare(subjects, args)
    return subjects, [ratio(*pair) for pair in pairs]


def measure_method(method: str, args: argparse.Namespace, dtype: str) -> Measured:
    """A method next to kd and, where there is one, the baseline."""
    ours = Subject("ours", method, dtype)
    kd = ours if method == REFERENCE else Subject("ours", REFERENCE, dtype)
    pairs: list[tuple[str, list[Subject], list[Subject]]] = [] if kd is ours else [("overhead", [ours], [kd])]
    if args.baseline and method in WEIGHTS:
        usual = Subject("baseline", method, "fp32")
        pairs.append(("speed-up", [usual], [ours]))
        if args.equal_precision and dtype == "bf16":
            ours_fp32, usual_bf16 = Subject("ours", method, "fp32"), Subject("baseline", method, "bf16")
            pairs.append(("speed-up at equal precision", [usual], [ours_fp32]))
            pairs.append(("speed-up at equal precision", [usual_bf16], [ours]))
    subjects, ratios = compared(args, *pairs, alone=[ours])
    if kd is not ours:
        subjects.remove(kd)
        ratios[0] |= arithmetic(ours, kd)
    return subjects, ratios


def arithmetic(ours: Subject, kd: Subject) -> dict[str, Any]:
    """A method's multiplications over kd's, and how often it reads an image where that is more than once."""
    more = {
        k: ours.once[f"{k}_passes"] for k in ("student", "teacher") if ours.once[f"{k}_passes"] > kd.once[f"{k}_passes"]
    }
    return {"step_macs_ratio": ours.once["step_macs"] / kd.once["step_macs"], "more_passes": more}


def measure_overheads(methods: Sequence[str], args: argparse.Namespace, dtype: str) -> Measured:
    """Many methods, each taking turns with one and the same process of kd."""
    kd, subjects, ratios = Subject("ours", REFERENCE, dtype), [], []
    with running([kd], args):
        for method in methods:
            ours, kd.turns = Subject("ours", method, dtype), []
            with running([ours], args):
                take_turns([kd, ours], args)
            subjects.append(ours)
            ratios.append(ratio("overhead", [ours], [kd]))
    return [kd, *subjects], [found | arithmetic(ours, kd) for found, ours in zip(ratios, subjects, strict=True)]


def measure_bare(args: argparse.Namespace, dtype: str) -> Measured:
    """kd next to the two halves of its arithmetic, each with nothing around it."""
    kd = Subject("ours", REFERENCE, dtype, "plain", {"flags": PLAIN})
    return compared(args, ("bare forward and step", [Subject("bare", h, dtype) for h in ("teacher", "student")], [kd]))


def measure_switches(names: Sequence[str], args: argparse.Namespace, dtype: str, on_cuda: bool) -> Measured:
    """kd with one setting switched over at a time; every ratio reads: without it / with it."""
    if not on_cuda:
        names = [n for n in names if n != "reduce_overhead"]  # CUDA graphs
    if dtype != "bf16":
        names = [n for n in names if n != "bf16"]
    base, pairs = Subject("ours", REFERENCE, dtype, "plain", {"flags": PLAIN}), []
    for name in names:
        switched, by_default = SWITCHES[name]
        request = switched | {"flags": [*PLAIN, *switched.get("flags", [])]}
        other = Subject("ours", REFERENCE, dtype, f"{'no ' * by_default}{name}", request)
        pairs.append((f"gain of {name}", *(([other], [base]) if by_default else ([base], [other]))))
    return compared(args, *pairs, alone=[base])


def measure_student(name: str, args: argparse.Namespace, dtype: str) -> Measured:
    """A student alone with the automatic settings and in plain float32; under kd, next to the usual loop."""
    student = {"student": name}
    alone = Subject("ours", "vanilla", dtype, name, student)
    plain = Subject("ours", "vanilla", "fp32", f"{name} plain", student | {"flags": [*PLAIN, "--channels_last", "off"]})
    kd, usual = (Subject(kind, REFERENCE, d, name, student) for kind, d in (("ours", dtype), ("baseline", "fp32")))
    return compared(args, ("automatic settings", [plain], [alone]), ("speed-up", [usual], [kd]))


def measure_warm_cache(args: argparse.Namespace, dtype: str) -> Measured:
    """kd whose teacher is a filled cache, next to kd and the baseline."""
    cached = Subject("cached", REFERENCE, dtype, request={"cache_images": args.warm_cache})
    kd, usual = Subject("ours", REFERENCE, dtype), Subject("baseline", REFERENCE, "fp32")
    return compared(args, ("gain of a warm cache", [kd], [cached]), ("speed-up of a warm cache", [usual], [cached]))


def measure_lanes(methods: Sequence[str], args: argparse.Namespace, dtype: str) -> Measured:
    """Students that share each teacher forward, next to the same students alone."""
    together, alone = Subject("ours", ",".join(methods), dtype), [Subject("ours", m, dtype) for m in methods]
    return compared(args, ("gain of lanes", alone, [together]))


def checks(
    rows: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]], dtype: str, on_cuda: bool = False
) -> list[dict[str, Any]]:
    """The targets that these rows and ratios can show, each with what was measured."""
    faster = GAIN["cuda" if on_cuda else "cpu"]
    row = {r["label"]: r for r in rows}
    seen = {(r["what"], r["slow"], r["fast"]): r["ratio"] for r in ratios}
    ours, usual = f"ours {{}} {dtype}", "baseline {} fp32"
    out: list[tuple[str, float, bool]] = []
    for method in WEIGHTS:
        mine, theirs = ours.format(method), usual.format(method)
        if (gain := seen.get(("speed-up", theirs, mine))) is None:
            continue
        out.append((f"{method} >= {faster} x baseline", gain, gain >= faster))
        memory = row[mine]["peak_mb"] / row[theirs]["peak_mb"]
        out.append((f"{method} peak memory <= baseline's training process", memory, memory <= 1.0))
        if (share := row[mine].get("loader_share")) is not None:  # --light leaves it out
            out.append((f"{method} loader < 2 % of the step", share, share < 0.02))
    for r in ratios:
        if r["what"] == "overhead":
            limit = max(OVERHEAD, OVER_ARITHMETIC * r["step_macs_ratio"])
            method = r["slow"].split()[1]
            if method == "crd":
                out.append(("crd <= 1.3 x kd", r["ratio"], r["ratio"] <= 1.3))
            out.append((f"{method} <= {limit:.2f} x kd", r["ratio"], r["ratio"] <= limit))
        elif r["what"] == "automatic settings":
            name = r["fast"].split()[3]
            out.append((f"{name}: automatic settings >= 0.97 x plain float32", r["ratio"], r["ratio"] >= 0.97))
        elif r["what"] == "bare forward and step":
            out.append(("kd >= 92 % of the rate of its bare halves", r["ratio"], r["ratio"] >= 0.92))
        elif r["what"] == "speed-up of a warm cache" and not on_cuda:
            out.append(("kd with a warm cache >= 4.5 x baseline", r["ratio"], r["ratio"] >= 4.5))
    if (kd := row.get(ours.format(REFERENCE))) is not None and "eval_share" in kd:
        out.append(("validation < 3 % of a kd epoch", kd["eval_share_train"], kd["eval_share_train"] < 0.03))
    for name, limit in MINUTES.items() if on_cuda else ():
        if (found := row.get(f"{name} {dtype}")) is not None:
            minutes = EPOCHS * CIFAR[0] / found["img_s"] / 60
            out.append((f"{name}, {EPOCHS} epochs without validation, < {limit} minutes", minutes, minutes < limit))
    return [{"target": target, "measured": value, "passed": passed} for target, value, passed in out]


def cell(row: dict[str, Any], key: str, form: str, factor: float = 1.0) -> str:
    return format(row[key] * factor, form) if row.get(key) is not None else ""


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows); an empty column is left out."""
    overhead = {r["slow"]: r for r in report["ratios"] if r["what"] == "overhead"}

    def cells(r: dict[str, Any]) -> dict[str, str]:
        over = overhead.get(r["label"], {})
        return {
            "configuration": r["label"],
            "ms/step": cell(r, "step_s", ".1f", 1e3),
            "range": f"{r['step_s_min'] * 1e3:.1f} to {r['step_s_max'] * 1e3:.1f}",
            "img/s": cell(r, "img_s", ".1f"),
            "without loader": cell(r, "bare_img_s", ".1f"),
            "loader ms (share)": f"{r['loader_s'] * 1e3:.2f} ({r['loader_share']:.2%})" if "loader_s" in r else "",
            "first step s": cell(r, "first_step_s", ".1f"),
            "peak MB": cell(r, "peak_mb", ".0f"),
            "loader processes MB": cell(r, "loader_processes_mb", ".0f") if r.get("loader_processes_mb") else "",
            "time / kd": cell(over, "ratio", ".3f"),
            "MACs / kd": cell(over, "step_macs_ratio", ".3f"),
            "time / MACs": f"{over['ratio'] / over['step_macs_ratio']:.3f}" if over else "",
            "connector MMACs/img": cell(r, "connector_macs", ".2f", 1e-6),
            "GFLOP/step": cell(r, "step_flops", ".1f", 1e-9),
            "matrix GFLOP/s": cell(r, "matrix_flops", ".0f", 1e-9),
            "share of it": cell(r, "matrix_share", ".1%"),
            "eval img/s": cell(r, "eval_img_s", ".0f"),
            "validation, fp32": cell(r, "eval_share", ".1%"),
            "as in training": cell(r, "eval_share_train", ".1%"),
        }

    rows = [cells(r) for r in report["rows"]]
    header = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    return header, [[row[name] for name in header] for row in rows]


def show(report: dict[str, Any], markdown: bool) -> None:
    torch_version, clock = report["environment"]["versions"]["torch"], report["clock"]
    print(
        f"{report['pair']}, batch {report['batch_size']}, {report['data']}, on {report['device']} "
        f"({report['threads']} threads, {clock} clock), torch {torch_version}, {report['date']}: {report['command']}"
    )
    print("", as_markdown(*table(report)), sep="\n")
    dash = "- " * markdown
    for r in report["rows"]:
        if "views_cached" in r:
            print(
                f"{dash}{r['label']}: {r['views_cached']} views were filled in {r['fill_s']:.1f} s; the share of "
                f"answers from the cache while timing was {r['cache_hit_rate']:.3f}"
            )
    for r in report["ratios"]:
        bare = f"; {r['ratio_without_loader']:.2f} x without the loaders" if "ratio_without_loader" in r else ""
        more = "".join(f"; the {k} reads {n:.1f} x the images" for k, n in r.get("more_passes", {}).items())
        print(
            f"{dash}{r['what']}: {r['slow']} takes {r['ratio']:.3f} x the time of {r['fast']} "
            f"({r['ratio_min']:.3f} to {r['ratio_max']:.3f}){bare}{more}"
        )
    for c in report["checks"]:
        print(f"{dash}{'PASS' if c['passed'] else 'FAIL'} {c['target']}: {c['measured']:.3f}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--pair", default="resnet32x4:resnet8x4", metavar="TEACHER:STUDENT", help="networks")
    add("--methods", default=None, help="methods with commas, or all (default kd,simkd,crd, if no other part is named)")
    add("--overhead", action="store_true", help="compare with one process of kd: quicker, and implied by --methods all")
    add(
        "--bare",
        action="store_true",
        help="compare kd with its teacher's forward pass alone and its student's step alone",
    )
    add("--switches", nargs="?", const=",".join(SWITCHES), help="measure the gain of every setting, or of those listed")
    add(
        "--warm_cache",
        **whole(1),
        nargs="?",
        const=64,
        metavar="IMAGES",
        help="kd with the teacher's logits of this many images cached",
    )
    add(
        "--students",
        nargs="+",
        default=[],
        metavar="NAME",
        help="students to time alone, in float32, and with kd, compared with a plain loop; --pair names the teacher",
    )
    add("--lanes", nargs="?", const="kd,at,sp,simkd", help="methods to train together, with one teacher forward pass")
    add("--floor", action="store_true", help="measure the FLOP/s of a step, as a share of those of matrix products")
    add("--profile", metavar="FOLDER", help="write a trace of each configuration to this folder")
    measuring.add_turns(parser, batch_size=64, steps=10, rounds=5)
    add("--warmup", type=int, default=2, help="untimed steps before the timed ones, in every turn")
    add("--together", action="store_true", help="run the first steps, which compile, of all configurations together")
    add("--light", action="store_true", help="time whole steps only, not the loader alone or steps without it")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="as in training")
    add("--baseline", action="store_true", help=f"also train {' and '.join(WEIGHTS)} in a plain loop, in float32")
    add("--equal_precision", action="store_true", help="also time ours in float32 and the baseline under bf16 autocast")
    add("--images", **whole(1), default=50_000, help="number of random training images, without --data_folder")
    add("--data_folder", default=None, help="folder of the real CIFAR-100 (default: random images)", metavar="FOLDER")
    add(
        "--json",
        nargs="?",
        const="",
        help="write all figures; without FILE to results/bench_<device>_<dtype>.json",
        metavar="FILE",
    )
    add("--merge", action="store_true", help="add the new figures to those in --json FILE")
    add("--show", metavar="FILE", help="measure nothing; print the report of this file")
    add("--markdown", action="store_true", help="print the table as markdown")
    add(
        "--check",
        action="store_true",
        help="print PASS or FAIL for every measured target; implies --baseline if no part is named",
    )
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[str]:
    """The methods to measure; UserError for names and numbers that do not fit."""
    teacher, colon, student = args.pair.partition(":")
    if not colon:
        raise UserError(f"--pair '{args.pair}' must read TEACHER:STUDENT, such as resnet32x4:resnet8x4")
    args.teacher, args.student = (model_for(name, (3, 32, 32)).name for name in (teacher, student))
    measuring.refuse_clock(args)
    unknown = [] if args.switches is None else [n for n in args.switches.split(",") if n not in SWITCHES]
    if unknown:
        raise UserError(f"--switches {', '.join(unknown)} are none of {', '.join(SWITCHES)}")
    if args.lanes is not None:
        args.lanes = list(dict.fromkeys(method_dict.resolve(m) for m in args.lanes.split(",")))
    args.students = [model_for(name, (3, 32, 32)).name for name in args.students]
    parts = (args.bare, args.switches, args.students, args.warm_cache, args.lanes)
    if args.methods is None:
        args.methods = "" if any(parts) else "kd,simkd,crd"
        args.baseline |= args.check and bool(args.methods)
    if args.methods == "all":
        args.overhead, args.light = True, True
    return _methods_of(args.methods, args.pair)


def _methods_of(names: str, pair: str) -> list[str]:
    """Those that are listed; UserError if one needs other networks. all: those that such a student can be trained with,
    next to such a teacher."""
    teacher, student = (model_for(name, (3, 32, 32)) for name in pair.split(":"))

    def fits(method: type[Distiller]) -> bool:
        try:
            method.needs(method.Config(), student, teacher)
        except UserError:
            if names != "all":
                raise
            return False
        return names != "all" or method.teacher_mode == "frozen"

    listed = method_dict if names == "all" else (method_dict.resolve(name) for name in names.split(",") if name)
    return [name for name in dict.fromkeys(listed) if fits(method_dict[name])]


def measure(methods: Sequence[str], args: argparse.Namespace, dtype: str, on_cuda: bool) -> list[Measured]:
    done: list[Measured] = []
    if args.overhead:
        done.append(measure_overheads([m for m in methods if m != REFERENCE], args, dtype))
    else:
        done += [measure_method(method, args, dtype) for method in methods]
    if args.bare:
        done.append(measure_bare(args, dtype))
    if args.switches:
        done.append(measure_switches(args.switches.split(","), args, dtype, on_cuda))
    done += [measure_student(name, args, dtype) for name in args.students]
    if args.warm_cache:
        done.append(measure_warm_cache(args, dtype))
    if args.lanes:
        done.append(measure_lanes(args.lanes, args, dtype))
    return done


def merged(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """The report in a file, with what `new` has measured in place of what it held of the same."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    different = [k for k in ("device", "dtype", "pair", "batch_size", "threads", "clock") if old.get(k) != new[k]]
    if different:
        raise UserError(f"--merge: {path} was measured with another {', '.join(different)}")
    rows = {r["label"]: r for r in old["rows"]}
    for r in new["rows"]:
        known = rows.get(r["label"], {})
        if "bare_step_s" in r or "bare_step_s" not in known:  # a light turn does not replace a full one
            rows[r["label"]] = r
    ratios = {(r["what"], r["slow"], r["fast"]): r for r in (*old["ratios"], *new["ratios"])}
    whole = new | {
        "command": f"{old['command']} && {new['command']}",
        "rows": list(rows.values()),
        "ratios": list(ratios.values()),
    }
    return whole | {"checks": checked(whole) if old["checks"] or new["checks"] else []}


def checked(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks of a report's figures, as they are defined now."""
    on_cuda = report["device"] != report["environment"]["cpu"]
    return checks(report["rows"], report["ratios"], report["dtype"], on_cuda)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.worker:
        return measuring.serve(args.worker, lambda request: KINDS[request["kind"]](request))
    if args.show:
        report = json.loads(Path(args.show).read_text())
        show(report | {"checks": checked(report) if report["checks"] else []}, args.markdown)
        return
    methods = plan(args)
    device, notice = pick_device(args.gpu_id)
    if notice:
        print(notice, file=sys.stderr)
    dtype = "bf16" if pick_autocast(args.precision, device) else "fp32"
    torch.set_num_threads(args.threads)
    measured = measure(methods, args, dtype, device.type == "cuda")
    rows = [subject.row(args.batch_size) for subjects, _ in measured for subject in subjects if subject.turns]
    ratios = [r for _, rs in measured for r in rs]
    named = ("pair", "batch_size", "threads", "clock", "steps", "warmup", "rounds")
    report = measuring.report(
        __file__,
        argv,
        device,
        rows,
        dtype=dtype,
        data=f"{args.data_folder and 'CIFAR-100' or f'{args.images} random images'}, 100 classes",
        **{k: getattr(args, k) for k in named},
    ) | {"ratios": ratios, "checks": []}
    report["checks"] = checked(report) if args.check else []
    path = None
    if args.json is not None:
        slug = re.sub(r"[^a-z0-9]+", "_", report["device"].lower()).strip("_")
        path = Path(args.json or f"results/bench_{slug}_{dtype}.json")
        report = merged(report, path) if args.merge else report
    show(report, args.markdown)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(report, path)
        print(f"written to {path}")


if __name__ == "__main__":
    run_script(main)
