"""Kills of each command that replaces an output, before each rename, removal and sync: ``make soak`` runs this.

Under the output's name must be the old output or the new one, whole; the next run must leave nothing else, and other
people's files beside the output must be as they were. `kills.py` says how.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kills import kill_everywhere
from test_kills import NAMES, commands
from tiny import save_tiny_encoder


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made").mkdir()
        replacing = commands(folder / "made", save_tiny_encoder(folder / "encoder"))
        for command in NAMES:
            for exchange in (True, False) if replacing[command].old.is_dir() else (True,):
                place = folder / f"{command}-{exchange}"
                place.mkdir()
                killed = kill_everywhere(replacing[command], place, least=20, exchange=exchange)
                calls = ", ".join(f"{count} {call}" for call, count in sorted(killed.kills.items()))
                how = "" if exchange else ", on a file system that exchanges no names"
                print(
                    f"{command}{how}: {sum(killed.kills.values())} kills (before {calls}); after {killed.old} the old "
                    f"output was there, after {killed.new} the new one; the next run left nothing else",
                    flush=True,
                )
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
