"""Listings of methods, models and data sets, for `--list` and for the tables of README and docs.

    python -m helper.options.listing [methods|models|data]     the page
    python -m helper.options.listing --write                   the tables of README and docs/, and listing.json

All entries come from the registries: the first line of a method's file names its paper, its Config the defaults,
`needs` its taps. Parameters and multiply-accumulates are counted on networks without data (torch's meta device), which
takes seconds; so they are read from listing.json, and only new entries, such as a plugin's models, are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from core.files import ROOT, atomic_write_text
from core.protocols import Context, ModelSpec, Side, UserError
from core.taps import TappedNet, probe
from dataset import dataset_dict
from distiller_zoo import method_dict
from distiller_zoo._task import chain_of, union_of_needs
from distiller_zoo.base import Distiller
from helper.deploy.cost import deployed_parameters, macs
from helper.options.method_flags import flags_of
from models import model_dict

STUDENT, TEACHER, BATCH = "resnet8x4", "resnet32x4", 64  # the pair of networks for which taps and parameters are shown
TRANSFORMER = "vit_tiny_cifar"  # the teacher of methods that need a transformer
LARGE_IMAGE = 64  # px; larger networks are counted with 1000 classes, others with 100
WIDTH = 118

PAPER = re.compile(
    r"(?P<title>.+?) \((?P<authors>[^(),]+?), (?:(?P<venue>[^(),]*?) )?(?P<year>\d{4})(?:, (?P<where>[^()]*))?\)"
)

# README shows these tables of results/ in short: under which name, which columns
SHOWN = {
    "full": (
        "cifar100_full_resnet56_resnet20",
        ("method", "network", "teacher", "last epoch", "published", "gain", "runs"),
    ),
    "measured": (
        "cifar100_scaled_resnet20_resnet8",
        ("method", "network", "teacher", "last epoch", "(best)", "gain", "runs", "parameters", "MACs"),
    ),
}
COUNTED = Path(__file__).with_name("listing.json")
KINDS = ("all", "methods", "models", "data")


@dataclass(frozen=True)
class Method:
    """One registry entry. paper: of paper_of(). taps: text of read_by().

    deployed, trained: parameters in addition to the student's, at test time and in training; None if unknown.
    """

    name: str
    aliases: tuple[str, ...]
    paper: dict[str, str]
    taps: str
    weights: str
    by_authors: str
    flags: str
    deployed: int | None
    trained: int | None
    remarks: tuple[str, ...]
    found: tuple[str, ...]  # remarks from counting
    about: tuple[str, ...]  # paragraphs


@dataclass(frozen=True)
class Model:
    """One registry entry. macs: per image of input_shape."""

    name: str
    parameters: int
    macs: int
    shape: tuple[int, ...]
    taps: str


def paper_of(method: type[Distiller]) -> dict[str, str]:
    """title, authors, venue (with the year) and where, from the first docstring line of the method's file; the
    whole line is the title if it names no paper."""
    first = (sys.modules[method.__module__].__doc__ or method.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    found = PAPER.match(first)
    if found is None:
        return {"title": first, "authors": "", "venue": "", "where": ""}
    parts = {k: v or "" for k, v in found.groupdict().items()}
    return parts | {"venue": f"{parts['venue']} {parts['year']}".strip()}


def grouped(taps: Iterable[str]) -> str:
    """stem, stage1, stage2, stage3, pooled -> stem, stage1-3, pooled."""
    numbers: dict[str, list[int]] = {}  # by name, with {} in the place of the number
    for tap in taps:
        found = re.fullmatch(r"(\D+)(\d+)(_\D+)?", tap)
        name = f"{found[1]}{{}}{found[3] or ''}" if found else tap
        numbers.setdefault(name, []).append(int(found[2]) if found else 0)
    words: list[str] = []
    for name, own in numbers.items():
        low, high = min(own), max(own)
        spans = [f"{low}-{high}"] if len(own) == high - low + 1 > 1 else sorted(own)
        words += dict.fromkeys(name.format(span) for span in spans)
    return ", ".join(words)


def bare(spec: ModelSpec, num_classes: int, want: Sequence[str] = ()) -> TappedNet:
    """The network without data: it has shapes and costs, but no values."""
    with torch.device("meta"):
        return TappedNet(spec(num_classes=num_classes), spec, want).eval()


def counts() -> dict[str, dict[str, list[Any]]]:
    """The content of listing.json: what count_model() and count_method() find."""
    return {
        "models": {m.name: [m.parameters, m.macs] for m in models(True)},
        "methods": {m.name: [m.taps, m.deployed, m.trained, list(m.found)] for m in methods(True)},
    }


@cache
def models(recount: bool = False) -> tuple[Model, ...]:
    """Every model of the registry. recount: do not read listing.json."""
    known = {} if recount else json.loads(COUNTED.read_text())["models"]
    return tuple(model(model_dict[name], known.get(name)) for name in model_dict)


def model(spec: ModelSpec, known: Sequence[int] | None = None) -> Model:
    """The entry of a model. known: what count_model() finds, if it was counted before."""
    parameters, cost = known or count_model(spec)
    about = f"; {spec.published.note}" if spec.published.note else ""
    return Model(spec.name, parameters, cost, spec.input_shape, grouped(spec.taps) + about)


def count_model(spec: ModelSpec) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one image)."""
    net = bare(spec, 1000 if spec.input_shape[-1] > LARGE_IMAGE else 100)
    cost = macs(net, {spec.input: spec.input_shape}, torch.device("meta"))
    return sum(p.numel() for p in net.model.parameters()), cost


@cache
def methods(recount: bool = False) -> tuple[Method, ...]:
    """Every method of the registry. recount: do not read listing.json."""
    known = {} if recount else json.loads(COUNTED.read_text())["methods"]
    return tuple(method(method_dict[name], known.get(name)) for name in method_dict)


def count_method(kind: type[Distiller]) -> tuple[str, int | None, int | None, list[str]]:
    """(taps, parameters deployed, parameters trained, remarks) for STUDENT and TEACHER."""
    try:
        taps, deployed, trained, full, other = _measured_somewhere(kind, kind.Config())
    except UserError as refusal:
        return "needs special networks", None, None, [str(refusal)]
    about = [f"taps and parameters are for {other} -> {STUDENT}"] if other else []
    return taps, deployed, trained, about + (["full batches only"] if full else [])


def method(kind: type[Distiller], known: Sequence[Any] | None = None) -> Method:
    """The entry of a method. known: what count_method() finds, if it was counted before."""
    cfg = kind.Config()
    weights = f"-c {cfg.cls:g} -d {cfg.div:g} -b {cfg.beta:g}" + (f" --kd_T {cfg.kd_T:g}" if cfg.kd_T != 4 else "")
    spelled = {"cls": "-c", "div": "-d", "beta": "-b"}
    by_authors = " ".join(f"{spelled.get(k, f'--{k}')} {v:g}" for k, v in kind.Config.authors.items())
    flags = " ".join(
        f.names[0] if f.type is bool else f"{f.names[0]} {'none' if f.default == () else f.default}"
        for f in flags_of(kind)
    )
    remarks = []
    if kind.teacher_mode == "absent":
        remarks.append("no teacher")
    elif kind.teacher_mode == "trained":
        remarks.append("trains a second student with the first")
    if kind.before is not None:
        remarks.append("has a first stage (--init_epochs)")
    taps, deployed, trained, found = known or count_method(kind)
    return Method(
        kind.name,
        tuple(a for a, n in method_dict.aliases.items() if n == kind.name),
        paper_of(kind),
        taps,
        weights,
        by_authors,
        flags,
        deployed,
        trained,
        tuple(remarks),
        tuple(found),
        tuple(" ".join(p.split()) for p in (vars(kind).get("__doc__") or "").split("\n\n") if p.strip()),
    )


@cache
def _probed(name: str) -> tuple[TappedNet, Side]:
    spec = model_dict[name]
    net = bare(spec, 100, tuple(spec.taps))
    return net, probe(net, {spec.input: spec.input_shape})


def _measured_somewhere(kind: type[Distiller], cfg: Distiller.Config) -> tuple[str, int | None, int, bool, str]:
    """_measured() on the plain networks, or on those with auxiliary heads of either kind, or with a transformer as
    teacher; and the transformer's name in that case, otherwise ""."""
    for end in ("", "_aux", "_aux_dpcd"):
        with contextlib.suppress(UserError):
            return *_measured(kind, cfg, STUDENT + end, TEACHER + end), ""
    return *_measured(kind, cfg, STUDENT, TRANSFORMER), TRANSFORMER


def _measured(
    kind: type[Distiller], cfg: Distiller.Config, student_name: str, teacher_name: str
) -> tuple[str, int | None, int, bool]:
    """(taps, parameters deployed, parameters trained, whether short batches are left out)."""
    student, teacher = model_dict[student_name], model_dict[teacher_name]
    spec_t = {"absent": None, "trained": student, "frozen": teacher}[kind.teacher_mode]
    needs = union_of_needs(kind, cfg, student, spec_t)
    net_s, side_s = _probed(student.name)
    side_t = None if spec_t is None else _probed(spec_t.name)[1]
    for spec, wanted in ((student, needs.student), (spec_t, needs.teacher)):
        if missing := set(wanted) - (spec.taps.keys() if spec else set()):
            raise UserError(f"{spec.name if spec else 'no teacher'} has no tap {', '.join(sorted(missing))}")
    ctx = Context(100, torch.arange(1000) % 100, BATCH, side_s, side_t)
    own_head = {id(p) for p in side_s.head.parameters()}
    trained, built = 0, None
    for stage in chain_of(kind):
        built = stage(cfg, dataclasses.replace(ctx, previous=built))
        trained += sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in own_head)
        built.requires_grad_(False)
    bare_count, deployed = deployed_parameters(net_s, None if built is None else built.deployment())
    logits = ("logits",) if kind.reads_logits or (cfg.div and spec_t) else ()
    reads_s, reads_t = (grouped((*names, *logits)) for names in (needs.student, needs.teacher))
    apart = f"student {reads_s or 'none'}; teacher {reads_t or 'none'}"
    taps = apart if reads_s != reads_t else reads_s or "none"
    heads = 0 if built is None else bare_count - deployed_parameters(net_s, None)[1]  # are dropped, with any method
    return taps, deployed - bare_count + heads, trained, needs.full_batches


def in_millions(count: int | None) -> str:
    """1.234 M, 0, or ? for an unknown count."""
    return "?" if count is None else str(count) if count < 1000 else f"{count / 1e6:.3f} M"


def page(kind: str = "all") -> str:
    """The plain text of `--list`."""
    parts = {"methods": _methods_page, "models": _models_page, "data": _data_page}
    return "\n\n".join(text() for name, text in parts.items() if kind in ("all", name))


def _data_page() -> str:
    return textwrap.fill(f"DATA SETS (--dataset): {', '.join(dataset_dict)}", WIDTH, subsequent_indent="    ")


def _methods_page() -> str:
    lines = [
        "METHODS (--distill; A+B joins the losses of two, A,B trains two students together)",
        *textwrap.wrap(
            f"taps and parameters: for {TEACHER} -> {STUDENT}, {100} classes. weights: -c for cross-entropy, -d for "
            "the logit KL, -b for the method's own term; --protocol authors uses the publication's weights.",
            WIDTH,
        ),
    ]
    for m in methods():
        about = "{title}. {authors}, {venue}" if m.paper["authors"] else "{title}"
        lines += ["", *textwrap.wrap(f"{', '.join((m.name, *m.aliases))}: {about.format(**m.paper)}", WIDTH)]
        extra = f"extra parameters: {in_millions(m.deployed)} at test time, {in_millions(m.trained)} in training"
        lines += textwrap.wrap(f"taps: {m.taps}. {extra}", WIDTH, initial_indent="    ", subsequent_indent="        ")
        authors = f" (authors: {m.by_authors})" if m.by_authors else ""
        facts = [f"weights: {m.weights}{authors}", *([f"flags: {m.flags}"] if m.flags else []), *m.remarks, *m.found]
        lines += textwrap.wrap("; ".join(facts), WIDTH, initial_indent="    ", subsequent_indent="        ")
        for paragraph in m.about:
            lines += textwrap.wrap(paragraph, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def model_rows(recount: bool = False) -> list[tuple[str, ...]]:
    """The rows of the table of models."""
    return [
        (m.name, f"{m.parameters / 1e6:.2f} M", f"{m.macs / 1e6:.1f} M", "x".join(map(str, m.shape)), m.taps)
        for m in models(recount)
    ]


def _models_page() -> str:
    head = ("name", "parameters", "MACs", "input", "taps")
    rows = model_rows()
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
    lines = ["MODELS (--model, --model_s, --model_t; parameters with 100 classes, for networks of 224 px with 1000)"]
    for name, *numbers, taps in (head, *rows):
        cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]
        start = "  ".join(cells) + "  "
        lines += textwrap.wrap(start + taps, WIDTH, subsequent_indent=" " * len(start), drop_whitespace=True)
    others = ", ".join(f"{prefix}:NAME" for prefix in model_dict.resolvers)
    return "\n".join([*lines, *textwrap.wrap(f"and any network of these packages: {others}", WIDTH)])


def tables(recount: bool = True) -> dict[str, str]:
    """The tables of README and docs/, in Markdown, by the name of their markers. recount: not from listing.json."""
    rows = [
        (
            f"`{m.name}`" + "".join(f", `{a}`" for a in m.aliases),
            ("{title} ({authors}, {venue})" if m.paper["authors"] else "{title}").format(**m.paper),
            m.taps + "".join(f" (of {TRANSFORMER})" for remark in m.found if TRANSFORMER in remark),
            f"`{m.weights}`" + (f"; `{m.by_authors}`" if m.by_authors else ""),
            f"{in_millions(m.deployed)} / {in_millions(m.trained)}",
        )
        for m in methods(recount)
    ]
    header = ("method", "paper", "reads", "weights; authors' own", "extra parameters, test / training")
    sizes = [(f"`{name}`", *rest) for name, *rest in model_rows(recount)]
    return {
        "methods": _markdown(header, rows),
        "models": _markdown(("model", "parameters", "MACs", "input", "taps"), sizes),
        **{name: measured((ROOT / "results" / f"{file}.md").read_text(), cols) for name, (file, cols) in SHOWN.items()},
    }


def measured(text: str, columns: Sequence[str]) -> str:
    """These columns of the first table of a page that scripts/make_table.py wrote, which leaves out empty ones."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    columns = [column for column in columns if column in header]
    return _markdown(columns, [[row[header.index(column)] for column in columns] for row in rows])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


PAGES = {**dict.fromkeys(SHOWN, "README.md"), "methods": "docs/methods.md", "models": "docs/models.md"}  # of each table


def written(recount: bool = True) -> dict[Path, str]:
    """Page -> its text with the current table; UserError if a marker is missing."""
    pages: dict[Path, str] = {}
    for name, table in tables(recount).items():
        path, start, end = ROOT / PAGES[name], f"<!-- {name} -->", f"<!-- end of {name} -->"
        text = pages.get(path) or path.read_text()
        if start not in text or end not in text:
            raise UserError(f"{path} has no place for the table of {name}: add the lines '{start}' and '{end}'")
        before, _, rest = text.partition(start)
        pages[path] = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return pages


def show(kind: str) -> None:
    """Print the page. The reader may stop early (`| head`)."""
    try:
        print(page(kind), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m helper.options.listing", description="List methods, models and data sets."
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, default="all")
    parser.add_argument("--write", action="store_true", help="write the tables of README and docs/")
    args = parser.parse_args(argv)
    if not args.write:
        show(args.kind)
    else:
        for path, text in written().items():
            atomic_write_text(path, text)
            print(f"wrote {path}")
        atomic_write_text(COUNTED, json.dumps(counts()).replace("], ", "],\n") + "\n")  # one entry per line


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
