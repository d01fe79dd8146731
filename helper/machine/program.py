"""How every program of the toolbox begins and ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from core import machine
from core.log import log_to_file
from core.machine import out_of_memory
from core.protocols import UserError
from helper.machine import distributed
from helper.machine.stopper import Interrupted


def run_script(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run an entry point. A user's error becomes one sentence and exit code 2; a bug keeps its traceback."""
    try:
        main(argv)
        sys.stdout.flush()
    except UserError as error:
        _end(_fail(error, 2))
    except Interrupted as stop:
        _end(_fail(stop, stop.code))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no memory left"
        _end(_fail(f"out of memory ({reason}): choose a smaller --batch_size, --image_size or network", 2))
    except BrokenPipeError:  # the reader has enough, as `| head`; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(141)
    except KeyboardInterrupt:
        _end(_fail("interrupted", 130))
    else:
        _end(0)


def _end(code: int) -> None:
    if machine.launched():
        distributed.leave(code)
    if code:
        sys.exit(code)


def _fail(message: Exception | str, code: int) -> int:
    log_to_file(str(message))
    if machine.is_main():
        print(message, file=sys.stderr)
    elif isinstance(message, UserError):  # of this rank alone, perhaps
        if not isinstance(message, distributed.RankLost):
            distributed.wait_to_speak()
        print(f"[rank {machine.rank()}] {message}", file=sys.stderr)
    if isinstance(message, distributed.RankLost):
        sys.stderr.flush()
        time.sleep(distributed.SPEAK_AFTER)  # the launcher's exit code is that of whoever ends first
    return code
