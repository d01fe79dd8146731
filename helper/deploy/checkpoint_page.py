"""A page about one checkpoint: its accuracy by class, its confusions, its worst mistakes and its calibration."""

from __future__ import annotations

import datetime
import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.protocols import Batch
from helper.deploy.pictures import as_png, draw_calibration, draw_confusion, grid, pyplot
from helper.evaluation.metrics import confusion_matrix

WORST = 20  # number of mistakes to show
PAIRS = 15  # number of confusions to list

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2rem } .about { color: #555 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .15rem .65rem; text-align: right; border-bottom: 1px solid #e2e2e2 } .text { text-align: left }
img { max-width: 100% }
.side { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start }
.scroll { max-height: 30rem; overflow: auto }
"""


class Seen:
    """Collects the results of evaluate_views(). entry: of Batch.inputs, to keep for the worst mistakes."""

    def __init__(self, entry: str):
        self.entry = entry
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []  # of samples(), by batch
        self._worst: list[tuple[float, int, Tensor]] = []  # (gap, place, input)

    def __call__(self, batch: Batch, readouts: Mapping[str, Tensor]) -> None:
        logits, labels = readouts["student"].float().cpu(), batch.target.cpu()
        first = sum(len(known) for _, known, _ in self._batches)
        p = logits.softmax(1)
        # probability of the wrong class minus that of the right one; 0 if right
        gaps = p.max(1).values - p.gather(1, labels[:, None])[:, 0]
        for i in gaps.topk(min(WORST, len(gaps))).indices.tolist():
            if gaps[i] > 0:
                self._worst.append((float(gaps[i]), first + i, batch.inputs[self.entry][i * batch.views].cpu()))
        self._worst = sorted(self._worst, key=lambda found: (-found[0], found[1]))[:WORST]
        self._batches.append((logits, labels, batch.index.cpu()))

    def samples(self) -> tuple[Tensor, ...]:
        """Logits [N, K], labels [N], and positions [N] in the test set, of which --skip_corrupt may leave some out."""
        return tuple(map(torch.cat, zip(*self._batches, strict=True)))

    @property
    def worst(self) -> list[tuple[int, Tensor]]:
        """(place among the logits, input), the most confident mistake first."""
        return [(place, x) for _, place, x in self._worst]


def class_rows(confusion: Tensor, classes: Sequence[str]) -> list[tuple[str, int, float, float]]:
    """(class, samples, recall, precision), the hardest class first; classes without samples are left out."""
    right, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    rows = [
        (name, n, 100 * r / n, 100 * r / p if p else 0.0)
        for name, r, n, p in zip(classes, right.tolist(), true.tolist(), predicted.tolist(), strict=True)
        if n
    ]
    return sorted(rows, key=lambda row: (row[2], row[0]))


def pair_rows(confusion: Tensor, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """(true class, predicted class, samples) of the most frequent mistakes."""
    mistakes = confusion.clone().fill_diagonal_(0).flatten()
    counts, places = mistakes.topk(min(PAIRS, len(mistakes)))
    k = len(classes)
    found = zip(counts.tolist(), places.tolist(), strict=True)
    return [(classes[at // k], classes[at % k], n) for n, at in found if n]


def table_html(header: Sequence[str], rows: Sequence[Sequence[Any]], text: int = 1) -> str:
    """text: number of leading columns that hold words. A float in a cell is a percentage."""

    def cell(i: int, value: Any, tag: str) -> str:
        kind = ' class="text"' if i < text else ""
        return f"<{tag}{kind}>{html.escape(f'{value:.1f}' if isinstance(value, float) else str(value))}</{tag}>"

    head = "".join(cell(i, name, "th") for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(cell(i, v, 'td') for i, v in enumerate(row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image_html(figure: Any, what: str) -> str:
    """The figure as an <img> whose data is inside the page. what: its description."""
    text = f'<img alt="{html.escape(what)}" src="{as_png(figure)}">'
    pyplot().close(figure)
    return text


def page(seen: Seen, classes: Sequence[str], title: str, source: str) -> str:
    """One self-contained HTML file. source: the checkpoint and the settings of its evaluation."""
    logits, labels, positions = seen.samples()
    p, predicted = logits.softmax(1).max(1)
    confusion = confusion_matrix(labels, predicted, len(classes))
    accuracy = 100 * float((predicted == labels).double().mean())
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4, 3.6))
    error, _ = draw_calibration(axis, logits, labels)
    axis.set_ylabel("accuracy")
    axis.legend(loc="upper left")
    calibration = image_html(figure, "Confidence against accuracy")
    figure, axis = plt.subplots(figsize=(6.5, 6))
    figure.colorbar(draw_confusion(axis, confusion, classes), label="share of the true class", shrink=0.8)
    matrix = image_html(figure, "Confusion matrix")
    worst = seen.worst
    names = [(classes[int(labels[i])], classes[int(predicted[i])]) for i, _ in worst]
    titles = [
        f"#{int(positions[i])}: {true}\nseen as {other}, {100 * float(p[i]):.0f} %"
        for (i, _), (true, other) in zip(worst, names, strict=True)
    ]
    mistakes = image_html(grid([x for _, x in worst], titles), "Worst mistakes") if worst else "<p>No mistake.</p>"
    facts = [
        ("samples", len(labels)),
        ("top-1 in %", f"{accuracy:.2f}"),
        ("mean confidence in %", f"{100 * float(p.double().mean()):.2f}"),
        ("expected calibration error in %", f"{100 * error:.2f}"),
    ]
    hardest = table_html(("class", "samples", "found in %", "right in %"), class_rows(confusion, classes))
    made = f"{source}; made by test_model.py on {datetime.date.today().isoformat()}."
    pairs = table_html(("true", "predicted", "samples"), pair_rows(confusion, classes), text=2)
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>",
            f"<p class='about'>{html.escape(made)}</p>",
            table_html(("measured", ""), facts),
            "<h2>Classes, the hardest first</h2><p class='about'>Found: the share of a class's samples that are "
            "recognised. Right: the share of the predictions of a class that are right.</p>",
            f"<div class='side'><div class='scroll'>{hardest}</div>",
            f"<div><b>Most frequent mistakes</b>{pairs}</div></div>",
            f"<h2>Confusion matrix</h2>{matrix}",
            f"<h2>Calibration</h2>{calibration}",
            "<h2>Worst mistakes</h2><p class='about'>The wrong predictions with the highest confidence. The "
            f"number is the position in the set.</p>{mistakes}",
        ]
    )
