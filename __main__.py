"""The process that runs the command line: what comes before its first import, and after its last word."""

from __future__ import annotations

import gc
import sys

from . import stopping


def main() -> None:
    """Run the command line, and heed Ctrl-C from before it is loaded until after it has ended."""
    stopping.listen()
    try:
        from . import cli

        stopping.heed()
        cli.main()
    except KeyboardInterrupt:  # before a command began; one that did explains it itself
        print("headstart: interrupted", file=sys.stderr)
        sys.exit(stopping.INTERRUPTED)
    finally:
        stopping.leave()
        # What is left goes with the process; the interpreter need not look through all that torch made once more.
        gc.freeze()


if __name__ == "__main__":
    main()
