"""Start and end of every program of the toolbox."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import machine
from core.log import log_to_file
from core.machine import out_of_memory
from core.protocols import UserError
from dataset.workers import lost_worker
from helper.machine import distributed
from helper.machine.stopper import Interrupted


def run_script(main: Callable[[None], object]) -> None:
    """Run an entry point. A UserError is printed as one sentence with exit code 2; a bug keeps its traceback.

    main: takes a command line, None for the program's own; may return an exit code."""
    accept_any_character()
    try:
        code = main(None)
        sys.stdout.flush()
    except UserError as error:
        _end(_fail(error, 2))
    except Interrupted as stop:
        _end(_fail(stop, stop.code))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            if reason := lost_worker(error):
                _end(_fail(reason, 2))
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no memory left"
        _end(_fail(f"out of memory ({reason}): choose a smaller --batch_size, --image_size or network", 2))
    except BrokenPipeError:  # the reader has stopped, as in `| head`; drop what is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(141)
    except KeyboardInterrupt:
        _end(_fail("interrupted", 130))
    else:
        _end(code if isinstance(code, int) else 0)


def accept_any_character() -> None:
    """Characters that the console cannot encode are printed as question marks instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end(code: int) -> None:
    if machine.launched():
        distributed.leave(code)
    if code:
        sys.exit(code)


def _fail(message: Exception | str, code: int) -> int:
    log_to_file(str(message))
    _tell_launcher(str(message), code)
    if machine.is_main():
        print(message, file=sys.stderr)
    elif isinstance(message, UserError):  # perhaps an error of this rank only
        if not isinstance(message, distributed.RankLost):
            time.sleep(distributed.SPEAK_AFTER)  # rank 0 reports what all ranks met, and the launcher ends the others
        print(f"[rank {machine.rank()}] {message}", file=sys.stderr)
    if isinstance(message, distributed.RankLost):
        sys.stderr.flush()
        time.sleep(distributed.SPEAK_AFTER)  # the launcher's exit code is that of the process that ends first
    return code


def _tell_launcher(message: str, code: int) -> None:
    """Write the sentence to torchrun's error file, so that torchrun ends with it instead of its own traceback."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        said = {"message": message, "errorCode": code, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": said}))


class ScriptParser(argparse.ArgumentParser):
    """The command line of a script: --help shows its docstring as it is, and behind each flag's text the default,
    unless the text names one."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=_WithDefaults, **kwargs)


class _WithDefaults(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        if not text or "default" in text or default is None or default is False or default is argparse.SUPPRESS:
            return text
        shown = " ".join(map(str, default if isinstance(default, list) else [default]))
        return f"{text} (default {shown.replace('%', '%%')})" if shown else text
