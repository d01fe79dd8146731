#!/usr/bin/env python3
"""Find unclear words in pages, messages, help texts and docstrings: python -m scripts.dev.check_words

Prints each place with a plainer word for it; exit code 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence

from core.files import ROOT
from helper.machine.program import ScriptParser, run_script

PLAIN = {
    "told": "called, named, given",
    "anew": "again, from scratch",
    "beside": "next to, besides, compared with",
    "goes on": "continues, resumes",
    "go on": "continue, resume",
    "nobody": "no person, none; or turn the sentence round",
    "somebody": "a person; or turn the sentence round",
    "lent": "transferred",
    "is no way to": "cannot",
    "has to say": "writes, reports",
    "whoever": "the process that, the code that",
    "answers for": "is the source of",
    "in good order": "after saving",
    "goes without saying": "is left out",
    "without a word": "silently",
    "at hand": "current, available; or leave it out",
    "bears": "has",
    "land in": "are written to",
    "lands in": "is written to",
    "continues there": "resumes",
    "resumes there": "to resume, run the same command",
    "selected on what it is reported on": "chosen on the test data",
    "not finite since": "became NaN or infinite in",
    "lie between": "be from ... to ...",
    "drop one": "leave one of them out",
    "nearly anything": "almost any exception",
}
WORD = re.compile(rf"\b({'|'.join(PLAIN)})\b", re.IGNORECASE)
FILES = ("*.py", "*.md", "*.sh", "*.toml", ":!tests", ":!results", ":!CHANGELOG.md", ":!docs/commands.md")
HERE = "scripts/dev/check_words.py"  # which lists the words


def found() -> Iterator[str]:
    """file:line: word (plain words)."""
    listed = subprocess.run(["git", "ls-files", "--", *FILES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name == HERE or not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for word in WORD.findall(line):
                yield f"{name}:{number}: '{word}' ({PLAIN[word.lower()]})"


def main(argv: Sequence[str] | None = None) -> int:
    ScriptParser(description=__doc__).parse_args(argv)
    places = list(found())
    print("\n".join(places) or "no such word")
    return 1 if places else 0


if __name__ == "__main__":
    run_script(main)
