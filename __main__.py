"""The process that runs the command line: what comes before its first import, and after its last word."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from . import stopping

_SELDOM = 300_000
"""New objects between two looks for cycles among them. Python's own 700 have it look through torch again and again
while that is imported; these are more than torch makes then."""


def main() -> NoReturn:
    """Run the command line, and end the process at once.

    Every file is closed by then, and Python's own end, which takes apart all that torch made, would take longer than
    reading a small table.
    """
    code = run()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # whoever read it has gone: that is for Python to say
        sys.exit(code)
    os._exit(code)


def run() -> int:
    """Run the command line, and heed Ctrl-C from before it is loaded until after it has ended; return the exit code."""
    gc.set_threshold(_SELDOM)
    # Arrow's own allocator hands memory back to the system after each block of a table, and asks for it again.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    code, interrupted = 0, False
    try:
        stopping.listen()
        try:
            from . import cli

            stopping.heed()
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            # typer's own answer, between what cli.py catches, says nothing
            interrupted = code == stopping.INTERRUPTED and ended.__context__ is not None
        finally:
            stopping.leave()
    except KeyboardInterrupt:  # outside of a command; one that had begun has explained it
        interrupted = True
    if interrupted:
        stopping.leave()
        print("headstart: interrupted", file=sys.stderr)
        code = stopping.INTERRUPTED
    return code


if __name__ == "__main__":
    main()
