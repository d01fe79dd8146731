"""Write flags.json, from which --help is printed, and scripts/flags.txt: python -m helper.options.flags"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Sequence
from typing import Any

from core.files import ROOT, atomic_write_text
from core.option import add_flag
from dataset import dataset_dict
from distiller_zoo import method_dict
from helper.options.method_flags import flags_of
from helper.options.parse import script_parser
from helper.options.quick import FLAGS, described
from helper.options.settings import COMMON, TrainStudentConfigs, TrainTeacherConfigs, common_flags
from models import model_dict


def flags() -> dict[str, Any]:
    """The content of flags.json, which quick.py reads."""
    kinds = {"train_teacher.py": TrainTeacherConfigs, "train_student.py": TrainStudentConfigs}
    scripts = {
        name: described(script_parser(kind), COMMON)
        | {"distill": next(f.default for f in common_flags(kind) if f.dest == "distill")}
        for name, kind in kinds.items()
    }
    for name in ("test_model.py", "eval_rep.py", "predict.py"):
        scripts[name] = described(runpy.run_path(str(ROOT / name))["parser"]()) | {"distill": None}
    own: dict[str, list[Any]] = {}
    for name in method_dict:
        parser = argparse.ArgumentParser(add_help=False)
        group = parser.add_argument_group(name)
        for flag in flags_of(method_dict[name]):
            add_flag(group, flag)
        own[name] = next((flags for title, flags in described(parser)["groups"] if title == name), [])
    names = {"distill": list(method_dict), "dataset": list(dataset_dict)}
    names |= dict.fromkeys(("model", "model_s", "model_t", "arch"), list(model_dict))
    return {"scripts": scripts, "methods": own, "aliases": dict(method_dict.aliases), "values": names}


def values() -> str:
    """The content of scripts/flags.txt: the flags that do not take one value, with 0, or + for several."""
    known = flags()
    groups = [flags for script in known["scripts"].values() for _, flags in script["groups"]]
    every = [flag for group in (*groups, *known["methods"].values()) for flag in group]
    counts = {0: "0", "?": "0", "+": "+", "*": "+"}
    lines = {
        f"{name} {counts[f['nargs']]}"
        for f in every
        if f.get("nargs") in counts
        for name in f["names"]
        if name[0] == "-"
    }
    return "\n".join(sorted(lines)) + "\n"


VALUES = ROOT / "scripts" / "flags.txt"


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(argv)
    atomic_write_text(FLAGS, json.dumps(flags(), indent=0) + "\n")
    atomic_write_text(VALUES, values())


if __name__ == "__main__":
    main()
