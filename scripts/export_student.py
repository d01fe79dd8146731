#!/usr/bin/env python3
"""Export a network: python scripts/export_student.py --path RUN --dataset cifar100 --out exported/

Writes model.safetensors with config.json, model.pt2 (torch.export), model.onnx and README.md, a model card with the
run's numbers. --int8 adds model_int8.onnx, model_int8.pt2 (torchao), and accuracy and latency in float32, bf16 and
int8. Each form is run on test images and must reproduce the logits of the checkpoint (except int8); the latency on this
CPU is printed. A network with deployed layers of its method (SimKD's projector and reused classifier) is exported as
one model; a network with auxiliary heads is exported without them. Inputs are those of the data set (images in [0, 1],
sensor windows); the normalisation is part of the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_write, atomic_write_json, atomic_write_text, make_folder, read_json
from core.log import log, progress, start_log
from core.option import whole
from core.packages import needed
from core.protocols import DataSet, UserError, first_line
from dataset.single_file import InputFormat
from helper.deploy.as_trained import add_as_trained, add_network, clip_settings_notice, open_as_trained
from helper.deploy.cost import deployed_count, macs
from helper.deploy.export import Plain, exported_program, latency, onnx_function, onnx_metadata, write_onnx
from helper.deploy.quantize import (
    INT8_PROGRAM,
    Measured,
    calibration_samples,
    compare,
    compiled,
    evaluation_samples,
    in_bf16,
    load_program,
    quantize_onnx,
    quantize_program,
)
from helper.machine.kernels import compiler_fault
from helper.machine.program import ScriptParser, run_script
from helper.networks.load import Network, load_network, network_without_heads
from helper.options.quick import normalised
from helper.runs.folder import without_folders
from helper.tables.writers import as_markdown, one_line

TOLERANCE = 1e-4  # of logits, relative to the largest (at least 1)


def write_safetensors(network: Network, config: dict[str, Any], path: Path) -> None:
    """Weights under the names of the checkpoint (model.*, and proj.*, head.* where the method deploys them)."""
    save = needed("safetensors.torch").save
    checkpoint = network.checkpoint
    tensors = {f"model.{k}": v.contiguous() for k, v in checkpoint.state.items()}
    if "proj" in checkpoint.extra:
        tensors |= {
            f"{n}.{k}": v.contiguous() for n in ("proj", "head") for k, v in checkpoint.extra.get(n, {}).items()
        }
    own = {k: config[k] for k in ("num_classes", "classes", "dataset")}
    meta = {"arch": config["architecture"], **own} | checkpoint.meta
    whole = {k: v.clone() for k, v in tensors.items()}
    atomic_write(save(whole, metadata={"format": "pt", "meta": json.dumps(meta)}), path)


def reader_of(path: Path, data: DataSet) -> Callable[[Tensor], Tensor]:
    """The exported file as a function of a batch, through what a user would open it with."""
    if path.suffix == ".safetensors":
        network = load_network(path, None, data.num_classes, data.shapes)
        return torch.no_grad()(Plain(network.tapped()).eval())
    if path.suffix == ".pt2":
        return load_program(path)
    return onnx_function(path)


def real_batch(data: DataSet, modality: str, count: int) -> tuple[Tensor, Tensor]:
    """(inputs [n, ...], labels [n]) from the test set."""
    inputs, labels = [], []
    for batch in data.test_loader(min(count, 250), device=torch.device("cpu")):
        inputs.append(batch.inputs[modality])
        labels.append(batch.target)
        if sum(map(len, labels)) >= count:
            break
    return torch.cat(inputs)[:count].contiguous(), torch.cat(labels)[:count]


def in_int8(network: Plain, data: DataSet, modality: str, args: argparse.Namespace, source: Path) -> list[Measured]:
    """Quantise the ONNX graph `source`, and the network with torchao; every precision on the whole test set."""
    path, program = args.out / "model_int8.onnx", args.out / INT8_PROGRAM
    batches = list(calibration_samples(data, modality, args.calibration))
    print(f"{path}: {quantize_onnx(source, path, batches)}")

    test = partial(evaluation_samples, data, modality)
    predictors: list[tuple[str, Callable[[Tensor], Tensor], Path | None]] = [
        ("float32, onnxruntime", reader_of(source, data), source),
        ("int8, onnxruntime", reader_of(path, data), path),
        ("float32, torch", torch.no_grad()(network), None),
        ("bf16, torch", in_bf16(network), None),
    ]
    if missing := quantize_program(network, batches, program):
        print(f"{program} is left out: {missing}")
    elif fault := compiler_fault(torch.device("cpu")):
        print(f"{program} is not measured: torch.compile does not work on this machine ({fault})")
    else:
        predictors.append(("int8, torch.compile", compiled(load_program(program)), program))
    rows = compare(predictors, test, next(iter(test()))[0][:1])
    for row in rows:
        print(f"{row.precision}: top-1 {row.accuracy:.2f}, {row.latency:.2f} ms on one CPU thread ({row.ratio:.2f} x)")
    return rows


def int8_table(rows: Sequence[Measured], calibration: int) -> str:
    """Of the model card."""
    header = ("precision", "top-1 on the whole test set", "file", "one sample, one CPU thread", "to float32")
    cells = [
        (
            row.precision,
            f"{row.accuracy:.2f} %",
            "" if row.bytes is None else f"{row.bytes / 1e6:.2f} MB",
            f"{row.latency:.2f} ms",
            f"{row.ratio:.2f} x",
        )
        for row in rows
    ]
    note = f"int8 was calibrated on {calibration} training samples; all latencies are from one run."
    return as_markdown(header, cells, [note])


def numbers_of(folder: Path) -> dict[str, Any]:
    """What the run says of itself: {} where the checkpoint lies in no run folder."""
    try:
        args, env = (read_json(folder / f"{n}.json", {}, "the card leaves its numbers out") for n in ("args", "env"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        finished = folder / "parameters.json"
        parameters = read_json(finished, {}, "the card leaves its numbers out") if finished.exists() else {}
    except UserError as error:
        if (folder / "args.json").exists():
            log.info("%s", error)
        return {}
    except (OSError, ValueError):
        return {}
    tested = [row for row in rows if "test_acc" in row]
    if not tested:
        return {}
    best = max(tested, key=lambda row: row["test_acc"])
    script = "train_teacher.py" if "model" in args["identity"] else "train_student.py"
    return {
        "last_epoch": {"epoch": tested[-1]["epoch"], "accuracy": tested[-1]["test_acc"]},
        "best_epoch": {"epoch": best["epoch"], "accuracy": best["test_acc"], "selected_on": "what it is reported on"},
        "teacher": parameters.get("arch_t"),
        "teacher_accuracy": parameters.get("teacher_acc"),
        "epochs": args["identity"].get("epochs"),
        "seed": args.get("seed"),
        "command": ["python", script, *without_folders(map(str, args.get("command", [])))],
        "commit": env.get("commit"),
        "hardware": (env.get("gpus") or [env.get("cpu")])[0],
    }


def usage(config: dict[str, Any]) -> list[str]:
    """Lines of the card: onnxruntime on one input, as they run in the exported folder, and what they do to an image."""
    shape = config["input_shape"]
    if config["input"] == "image":
        size = shape[-1]
        shorter = size * 256 // 224 if config["dataset"] == "imagenet" else size
        imports = ["from PIL import Image, ImageOps"]
        about = f"the shorter side is resized to {shorter} pixels, of which the centre, {size} by {size}, is cut out"
        read = [
            'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # upright, as in training',
            f"sides = [side * {shorter} // min(image.size) for side in image.size]",
            f"left, top = ((side - {size}) // 2 for side in sides)",
            f"box = (left, top, left + {size}, top + {size})",
            "image = image.resize(sides, Image.Resampling.BILINEAR).crop(box)",
            "x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255",
        ]
    else:
        imports, about = [], f"zeros stand for one {config['input']} as the data set yields it"
        read = [f"x = np.zeros((1, {', '.join(map(str, shape))}), np.float32)"]
    code = [
        "import json, numpy as np, onnxruntime",
        *imports,
        *read,
        'logits = onnxruntime.InferenceSession("model.onnx").run(["logits"], {"input": x})[0]',
        'print(json.load(open("config.json"))["classes"][int(logits.argmax())])',
    ]
    return ["## Use", "", f"In this folder ({about}; the input is called `input`):", "", "```python", *code, "```", ""]


def card(config: dict[str, Any], files: dict[str, float], speed: dict[str, float], name: str) -> str:
    """README.md of the exported folder, with the front matter that model hubs read."""
    run, tested = config.get("run") or {}, config["measured"]
    words = {key: one_line(str(config[key])) for key in ("dataset", "architecture", "method") if config.get(key)}
    config = config | words
    measured = [(f"top-1 on {tested['images']} test images, float32", f"{tested['accuracy']:.2f} %")]
    if run:
        last, best = run["last_epoch"], run["best_epoch"]
        chosen = f"best epoch ({best['epoch']}), chosen on the test data, hence optimistic"
        measured += [
            (f"last evaluated epoch ({last['epoch']}) of its run", f"{last['accuracy']:.2f} %"),
            (chosen, f"{best['accuracy']:.2f} %"),
        ]
        if run.get("teacher_accuracy") is not None:
            measured.append(("its teacher", f"{run['teacher_accuracy']:.2f} %"))
    measured += [
        ("parameters at test time", f"{config['parameters']:,}"),
        ("multiply-accumulates per sample", f"{config['macs'] / 1e6:.1f} M"),
        *((f"{what}, one CPU thread", f"{value:.2f} ms") for what, value in speed.items()),
    ]
    gaps = [(f"`{file}`", f"{gap:.1e}") for file, gap in files.items()]
    lines = [
        "---",
        "library_name: pytorch",
        f"datasets: [{json.dumps(config['dataset'])}]",  # a JSON string is one of YAML
        "tags: [knowledge-distillation]",
        "---",
        f"# {one_line(name)}",
        "",
        f"`{config['architecture']}` for {config['num_classes']} classes of {config['dataset']}"
        + (f", trained with {config['method']}" if config.get("method") else "")
        + (f" by the teacher {one_line(run['teacher'])}" if run.get("teacher") else "")
        + ".",
        "",
        as_markdown(("measured", ""), measured),
        f"Input: float32 `[batch, {', '.join(map(str, config['input_shape']))}]`, {config['input']} values as the data "
        "set yields them (images in [0, 1]); the normalisation is part of the model. Output: logits.",
        "",
        as_markdown(("file", "largest difference of a logit from the checkpoint"), gaps),
        *(usage(config) if "model.onnx" in files else []),
    ]
    if "int8" in config:
        rows = [Measured(**row) for row in config["int8"]["rows"]]
        lines.append(int8_table(rows, config["int8"]["calibration"]))
    if run:
        lines += ["Trained by", "", "    " + one_line(shlex.join(map(str, run["command"]))), ""]
        lines += [f"at commit {run['commit']}, on {run['hardware']}, seed {run['seed']}.", ""]
    return "\n".join(lines)


def export(args: argparse.Namespace) -> dict[str, float]:
    """Everything in args.forms; file name -> largest difference. Raises UserError where one differs too much."""
    data, options = open_as_trained(args.path, args)
    if data.videos and (clips := clip_settings_notice(args.path, options)):
        print(clips)
    network = load_network(args.path, args.model, data.num_classes, data.shapes, flag="--model")
    whole = Plain(network.tapped()).eval()
    network = network_without_heads(network, data.shapes)
    if network.spec.branches:
        print(
            f"{network.spec.name} has heads, and no network without them has a name: the weights file keeps the heads",
            file=sys.stderr,
        )
    model, spec, meta = Plain(network.tapped()).eval(), network.spec, network.checkpoint.meta
    if spec.input not in data.shapes:
        raise UserError(f"{spec.name} reads '{spec.input}', {data.name} has {', '.join(data.shapes)}")
    x, labels = real_batch(data, spec.input, args.images)
    example = x[:2].clone()  # a view would bring all of x into the file
    with torch.no_grad():
        expected = whole(x)
    reads = InputFormat.of(spec.input, tuple(x.shape[1:]), {"dataset": data.name, **meta})
    config = {
        "architecture": spec.name,
        "method": meta.get("method"),
        "deploys": meta.get("deploys"),
        "dataset": data.name,
        "num_classes": data.num_classes,
        "classes": list(map(str, data.classes)),
        "input": spec.input,
        "input_shape": list(x.shape[1:]),
        "preprocess": reads.as_dict(),
        "mean": spec.mean if model.normalised else None,
        "std": spec.std if model.normalised else None,
        "parameters": deployed_count(network.model),
        "macs": macs(network.tapped().eval(), data.shapes, torch.device("cpu")),
        "measured": {"images": len(x), "accuracy": 100 * float((expected.argmax(1) == labels).double().mean())},
        "run": numbers_of(Path(args.path).resolve().parent),
    }
    make_folder(args.out)
    writers = {
        "safetensors": (args.out / "model.safetensors", lambda path: write_safetensors(network, config, path)),
        "export": (args.out / "model.pt2", lambda path: torch.export.save(exported_program(model, example), path)),
        "onnx": (
            args.out / "model.onnx",
            lambda path: write_onnx(model, example, path, onnx_metadata(data.classes, reads)),
        ),
    }
    gaps, speed, agreed = {}, {}, []
    for form in progress(args.forms, "writing and checking"):
        path, write = writers[form]
        write(path)
        predict = reader_of(path, data)
        gap = float((predict(x) - expected).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"{path} is wrong: a logit differs by {gap:.2g} from the checkpoint's on real {spec.input}s"
            )
        gaps[path.name] = gap
        agreed.append(f"{path}: logits of {len(x)} test samples agree to {gap:.1e}")
        for size in (1, 64):
            speed[f"{path.name}, batch {size}"] = latency(partial(predict, x[:size]))
    print("\n".join(agreed))
    if args.int8:
        rows = in_int8(model, data, spec.input, args, args.out / "model.onnx")
        config["int8"] = {"calibration": args.calibration, "rows": [dataclasses.asdict(row) for row in rows]}
    for what, value in speed.items():
        print(f"latency {what}: {value:.2f} ms on one CPU thread")
    atomic_write_json(config, args.out / "config.json")
    name = args.name or f"{spec.name} on {data.name}"
    atomic_write_text(args.out / "README.md", card(config, gaps, speed, name))
    return gaps


FORMS = ("safetensors", "export", "onnx")


def push(folder: Path, repository: str) -> None:
    hub = needed("huggingface_hub")
    try:
        hub.create_repo(repository, exist_ok=True)
        where = hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of a student")
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        raise UserError(f"cannot push to {repository}: {first_line(error)}") from error
    print(f"pushed to {where}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add_network(parser, "checkpoint of a run, _best.pth or _last.pth, or its folder (then the best epoch)")
    add_as_trained(parser)
    add("--images", **whole(1, 10**9), default=1000, help="test samples to compare on")
    add("--forms", nargs="+", default=list(FORMS), help=f"forms, of {', '.join(FORMS)} (default: all)", metavar="FORM")
    add(
        "--int8",
        action="store_true",
        help="also write model_int8.onnx and, with torchao, model_int8.pt2, and measure its accuracy and latency",
    )
    add("--calibration", **whole(1, 10**9), default=512, help="training samples for its calibration")
    add("--name", help="heading of the model card (default: NETWORK on DATA SET)", metavar="TEXT")
    add("--push_to", help="repository to upload to, such as user/name (huggingface_hub)", metavar="USER/NAME")
    add("--out", type=Path, required=True, help="folder", metavar="FOLDER")
    args = parser.parse_args(normalised(argv))
    start_log()
    if stray := set(args.forms) - set(FORMS):
        raise UserError(f"--forms {', '.join(sorted(stray))}: known are {', '.join(FORMS)}")
    if args.int8 and "onnx" not in args.forms:
        raise UserError("--int8 quantises the ONNX graph: add onnx to --forms")
    for kind in (UserWarning, DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind)
    for library in ("torch.onnx", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    export(args)
    if args.push_to:
        push(args.out, args.push_to)


if __name__ == "__main__":
    run_script(main)
