"""Help and shell completion without torch: entry scripts answer from flags.json before their slow imports.

flags.json describes the parsers of the entry scripts; `python -m helper.options.flags` writes it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FLAGS = Path(__file__).with_name("flags.json")


class HelpAction(argparse.Action):
    """-h, --help: the common flags; --help_all: every flag."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(page(described(parser, self.const), everything="--help_all" in self.option_strings), end="")
        parser.exit()


def add_help(parser: argparse.ArgumentParser, common: Mapping[str, Sequence[str]] | None = None) -> None:
    """Both flags for a parser made with add_help=False. common: heading -> flags of the short page; None: all."""
    parser.add_argument("-h", "--help", action=HelpAction, const=common, help="show the common flags, then exit")
    parser.add_argument("--help_all", action=HelpAction, const=common, help="show every flag, then exit")


def described(parser: argparse.ArgumentParser, common: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """A parser as plain values, for flags.json and page()."""
    groups = [[g.title, [_flag(a) for a in g._group_actions]] for g in parser._action_groups if g._group_actions]
    return {
        "prog": parser.prog,
        "description": parser.description,
        "epilog": parser.epilog,
        "groups": groups,
        "common": common,
    }


def _flag(action: argparse.Action) -> dict[str, Any]:
    found = {
        "names": list(action.option_strings) or [action.dest],
        "help": action.help,
        "metavar": action.metavar,
        "choices": None if action.choices is None else list(action.choices),
        "nargs": action.nargs,
    }
    return {k: v for k, v in found.items() if v is not None}


def page(about: Mapping[str, Any], everything: bool) -> str:
    """The text of --help or --help_all."""
    flags = {flag["names"][0].lstrip("-"): flag for _, group in about["groups"] for flag in group}
    groups, common = about["groups"], about["common"]
    shown = groups
    if common and not everything:
        shown = [groups[0]]  # --help itself
        shown += [[title, [flags[name] for name in names if name in flags]] for title, names in common.items()]
        shown += [group for group in groups if group[0].startswith("flags of ")]
    count = len(flags) - sum(len(group) for _, group in shown)
    more = f" --help_all shows {count} more flags." if count else ""
    return build(about, shown, (about["epilog"] or "") + more).format_help()


def build(about: Mapping[str, Any], groups: Sequence[Any], epilog: str = "") -> argparse.ArgumentParser:
    """A parser with names, choices and texts, only for help and completion."""
    words = [f" {flag['names'][0]} ..." for _, flags in groups for flag in flags if flag["names"][0][0] != "-"]
    parser = argparse.ArgumentParser(
        about["prog"],
        usage="%(prog)s [flags]" + "".join(words),
        description=about["description"],
        epilog=epilog,
        formatter_class=_Paragraphs,
        add_help=False,
    )
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for flag in flags:
            given = {k: v for k, v in flag.items() if k != "names"}
            if given.get("nargs") == 0:
                given = {"help": flag["help"], "action": "store_true"}
            group.add_argument(*flag["names"], **given)
    return parser


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph of the description separately; argparse would join them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(_Paragraphs, self)._fill_text(p, width, indent) for p in text.strip().split("\n\n"))


def normalised(argv: Sequence[str] | None) -> list[str]:
    """--path-t=x -> --path_t=x; ~/x is expanded, which shells do not do in --path_t=~/x.

    Other values and single-dash flags do not change. None reads sys.argv.
    """
    argv = sys.argv[1:] if argv is None else argv
    out: list[str] = []
    for i, token in enumerate(argv):
        if token == "--":
            return out + list(argv[i:])
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            token = "--" + name.replace("-", "_") + equals + _from_home(value)
        else:
            token = _from_home(token)
        out.append(token)
    return out


def _from_home(value: str) -> str:
    return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value


def answer(script: str) -> None:
    """Called by an entry script before it imports torch: print the requested help and exit, or complete a command line
    for the shell. Otherwise return, also if flags.json may lack some flags (--plugin)."""
    if not (sys.stderr is not None and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries' downloads; tqdm reads this when it is imported
    argv = normalised(None)
    completes = "_ARGCOMPLETE" in os.environ
    if not (completes or {"-h", "--help", "--help_all"} & set(argv)) or "--plugin" in argv:
        return
    known = json.loads(FLAGS.read_text())
    about = known["scripts"][script]
    words = shlex.split(os.environ["COMP_LINE"]) if completes else argv
    named = _value_of("--distill", words)
    if about["distill"]:
        names = [known["aliases"].get(name, name) for name in re.split("[+,]", named or about["distill"])]
        if not completes and not set(names) <= known["methods"].keys():
            return  # the full parser reports the mistake
        about["groups"] += [[f"flags of {name}", known["methods"].get(name, [])] for name in dict.fromkeys(names)]
    if completes:
        _complete(build(about, about["groups"]), known["values"])
    print(page(about, everything="--help_all" in argv), end="")
    raise SystemExit(0)


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """The last value of a flag on the command line."""
    found = [w.partition("=")[2] for w in words if w.startswith(flag + "=")]
    found += [value for word, value in itertools.pairwise(words) if word == flag]
    return found[-1] if found else None


def _complete(parser: argparse.ArgumentParser, values: Mapping[str, Sequence[str]]) -> None:
    """Answer argcomplete's request and exit. values: flag -> names to offer."""
    import argcomplete

    for action in parser._actions:
        if action.dest in values:
            action.completer = lambda dest=action.dest, **_: values[dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
