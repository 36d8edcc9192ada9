"""Ctrl-C at any time: one line, exit code 130, and no output of Python or a library about it.

`test_crashes.py` stops runs while they encode; `make soak` stops them at random.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from extracting import run
from tiny import tiny_rows

INTERRUPTED = """
import os, signal, sys

def interrupt(): os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(name, *_):
        if name == os.environ["WHEN"]:
            sys.meta_path.remove(Finder)
            interrupt()

sys.meta_path.insert(0, Finder)
end = os._exit

def interrupt_at_the_end(code):
    os._exit = end
    interrupt()
    end(code)

if os.environ["WHEN"] == "the end":
    os._exit = interrupt_at_the_end

from headstart.__main__ import main
main()
"""


@pytest.mark.parametrize("when", ["typer", "torch.autograd", "the end"])
def test_the_command_line_heeds_it_from_its_first_import_to_after_its_last_word(
    when: str, tiny: Path, tmp_path: Path, write_csv: Any
) -> None:
    run(write_csv(tiny_rows(60)), tmp_path / "c.h5", tiny)
    command = [sys.executable, "-c", INTERRUPTED, "train-head", str(tmp_path / "c.h5"), "--quiet"]
    command += ["--out", str(tmp_path / "run"), "--solver", "sgd", "--epochs", "2"]
    done = subprocess.run(command, env={**os.environ, "WHEN": when}, capture_output=True, text=True, check=False)
    said = "" if when == "the end" else "headstart: interrupted\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)
    assert (tmp_path / "run").exists() == (when == "the end")


AT_A_LOCK = """
import signal, threading, time
from headstart import stopping

stopping.catch_signals()
lock, entered = threading.Lock(), False
lock.acquire()

def interrupt():
    time.sleep(0.3)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.3)
    lock.release()

threading.Thread(target=interrupt).start()
try:
    with threading.Condition(lock):
        entered = True
        time.sleep(60)
except KeyboardInterrupt:
    print(entered, lock.locked())
"""


def test_it_waits_until_a_lock_is_taken() -> None:
    """Where it comes between a lock and the block that releases it, a thread that needs the lock would never end."""
    done = subprocess.run([sys.executable, "-c", AT_A_LOCK], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")


IMPORTING = """
import time
from headstart import stopping
stopping.catch_signals()
try:
    import interrupting
    print("imported")
    time.sleep(60)  # says nothing of how far it is
    print("not heeded")
except KeyboardInterrupt:
    print("heeded")
    time.sleep(0.2)  # no request comes once more
"""


@pytest.mark.parametrize(("requests", "printed"), [(1, "imported\nheeded\n"), (2, "heeded\n")])
def test_an_import_is_finished_first_unless_it_is_asked_for_again(requests: int, printed: str, tmp_path: Path) -> None:
    """An exception during the import of torch aborts the process, or leaves torch without numpy."""
    (tmp_path / "interrupting.py").write_text(
        "import os, signal\n" + "os.kill(os.getpid(), signal.SIGINT)\n" * requests
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (printed, "")


SILENT = """
import sys
from headstart import cli
from headstart.__main__ import main

def as_typer_does():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(130)

cli.main = as_typer_does
main()
"""


def test_what_typer_says_nothing_of_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "headstart: interrupted\n")


LOST = """
import os, signal
from headstart import stopping

class Finalized:
    def __init__(self, action): self.action = action
    def __del__(self): self.action()

def fail(): raise ValueError("another error")

stopping.catch_signals()
Finalized(fail)
Finalized(lambda: os.kill(os.getpid(), signal.SIGINT))
print(repr(stopping.request()))
"""


def test_python_prints_what_else_is_lost_in_a_finalizer_but_not_what_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True)
    assert done.stdout == "KeyboardInterrupt()\n"
    assert done.stderr.count("Exception ignored in") == 1 and done.stderr.endswith("ValueError: another error\n")


def test_it_stays_ignored_where_the_run_was_started_so(tiny: Path, tmp_path: Path, write_csv: Any) -> None:
    """As `nohup` and `&` in a shell start a run."""
    table = write_csv(tiny_rows(60))
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED
    command = [sys.executable, "-c", code, "extract", str(table), "--encoder", str(tiny), "--quiet"]
    command += ["--out", str(tmp_path / "c.h5")]
    done = subprocess.run(command, env={**os.environ, "WHEN": "torch.autograd"}, check=False)
    assert done.returncode == 0 and (tmp_path / "c.h5").exists()
