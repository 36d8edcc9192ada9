"""The process that runs the command line: what comes before its first import, and after its last word."""

from __future__ import annotations

import gc
import sys

from . import stopping


def main() -> None:
    """Run the command line, and heed Ctrl-C from before it is loaded until after it has ended."""
    interrupted = False
    try:
        stopping.listen()
        try:
            from . import cli

            stopping.heed()
            cli.main()
        except SystemExit as ended:
            interrupted = ended.code == stopping.INTERRUPTED and ended.__context__ is not None
            if not interrupted:  # typer's own answer, between what cli.py catches, says nothing
                raise
        finally:
            stopping.leave()
            # What is left goes with the process; the interpreter need not look through all that torch made once more.
            gc.freeze()
    except KeyboardInterrupt:  # outside of a command; one that had begun has explained it
        interrupted = True
    if interrupted:
        stopping.leave()
        print("headstart: interrupted", file=sys.stderr)
        sys.exit(stopping.INTERRUPTED)


if __name__ == "__main__":
    main()
