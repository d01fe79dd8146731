"""How every program of the toolbox begins and ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core import machine
from core.log import log_to_file
from core.machine import out_of_memory
from core.protocols import UserError
from dataset.workers import lost_worker
from helper.machine import distributed
from helper.machine.stopper import Interrupted


def run_script(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Run an entry point. A user's error becomes one sentence and exit code 2; a bug keeps its traceback.

    main: may return an exit code."""
    accept_any_character()
    try:
        code = main(argv)
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
    except BrokenPipeError:  # the reader has enough, as `| head`; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(141)
    except KeyboardInterrupt:
        _end(_fail("interrupted", 130))
    else:
        _end(code if isinstance(code, int) else 0)


def accept_any_character() -> None:
    """What the console's encoding lacks is printed as a question mark instead of ending the program."""
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
    elif isinstance(message, UserError):  # of this rank alone, perhaps
        if not isinstance(message, distributed.RankLost):
            distributed.wait_to_speak()
        print(f"[rank {machine.rank()}] {message}", file=sys.stderr)
    if isinstance(message, distributed.RankLost):
        sys.stderr.flush()
        time.sleep(distributed.SPEAK_AFTER)  # the launcher's exit code is that of the process that ends first
    return code


def _tell_launcher(message: str, code: int) -> None:
    """Leave the sentence in the error file of torchrun, which ends with it instead of its own traceback of children."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        said = {"message": message, "errorCode": code, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": said}))
