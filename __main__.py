"""The process that runs the command line: what happens before its first import, and after its last output."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from . import stopping

_GC_THRESHOLD = 300_000
"""Number of new objects between two garbage collections. With Python's own 700, the import of torch would start many
of them; torch makes fewer objects than this."""


def main() -> NoReturn:
    """Run the command line, and end the process at once.

    All files are closed by then. Python's own cleanup, which destroys all objects of torch, would take longer than
    reading a small table.
    """
    code = run()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # the reader of the output is gone; Python reports it
        sys.exit(code)
    os._exit(code)


def run() -> int:
    """Run the command line, and return the exit code. Ctrl-C works from before its import until after its end."""
    gc.set_threshold(_GC_THRESHOLD)
    # Arrow's own allocator returns memory to the system after each block of a table, and requests it again.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    code, interrupted = 0, False
    try:
        stopping.catch_signals()
        try:
            from . import cli

            stopping.raise_request()
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            # Where cli.py does not catch it, typer turns an interrupt into this exit code, and prints nothing.
            interrupted = code == stopping.INTERRUPTED and ended.__context__ is not None
        finally:
            stopping.exit_on_signals()
    except KeyboardInterrupt:  # outside a command; a command explains it itself
        interrupted = True
    if interrupted:
        stopping.exit_on_signals()
        print("headstart: interrupted", file=sys.stderr)
        code = stopping.INTERRUPTED
    return code


if __name__ == "__main__":
    main()
