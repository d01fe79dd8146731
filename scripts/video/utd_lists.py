#!/usr/bin/env python3
"""Write lists of UTD-MHAD clips for --dataset video: python scripts/video/utd_lists.py FOLDER OUT

27 classes, cross-subject: odd subjects train, even ones test. FOLDER holds a{A}_s{S}_t{T}_color.avi.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script

NAME = re.compile(r"a(\d+)_s(\d+)_t(\d+)_color\.avi$")


def main(argv=None):
    parser = ScriptParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the clips")
    parser.add_argument("out", type=Path, help="folder for train.txt and test.txt")
    args = parser.parse_args(argv)
    found = [(path, match) for path in sorted(args.folder.glob("*.avi")) if (match := NAME.match(path.name))]
    if not found:
        raise UserError(f"'{args.folder}' holds no a{{A}}_s{{S}}_t{{T}}_color.avi: give the folder of the clips")
    args.out.mkdir(parents=True, exist_ok=True)
    lines: dict[bool, list[str]] = {True: [], False: []}
    for path, match in found:
        action, subject = int(match[1]), int(match[2])
        lines[subject % 2 == 1].append(f"{path.name} {action - 1}\n")
    for train, name in ((True, "train.txt"), (False, "test.txt")):
        (args.out / name).write_text("".join(lines[train]))
        print(f"{args.out / name}: {len(lines[train])} clips")


if __name__ == "__main__":
    run_script(main)
