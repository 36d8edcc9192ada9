"""Kills of commands that replace an output: before each call that renames, removes or syncs something.

One process has loaded everything and computed nothing. From it each run is forked, so hundreds of kills are cheap. A
run is killed, by SIGKILL, before the n-th of its calls; then what is under the output's name must be the old output or
the new one, whole; and the same command once more must end with the new one, with nothing left beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from extracting import datasets
from processes import SERVER, _command, blocks_of, forked

POINTS = ("rename", "replace", "exchange", "unlink", "rmdir", "fsync")
OUT = "OUT"
FOREIGN = ("{}.lock", "{}.partial", ".{}.old", "thesis.txt")


@dataclasses.dataclass(frozen=True)
class Replacing:
    """A command that replaces an output.

    Attributes:
        name: Its name here.
        arguments: Of the command line; `OUT` stands for the output's path.
        out: The output's name.
        old: The old output, which is copied to its place before each run.
    """

    name: str
    arguments: tuple[str, ...]
    out: str
    old: Path


@dataclasses.dataclass(frozen=True)
class Killed:
    """How many kills there were, by the call that they came before, and what was under the output's name afterwards."""

    kills: dict[str, int]
    old: int
    new: int


def kill_everywhere(
    replacing: Replacing, folder: Path, *, step: int = 1, least: int = 0, exchange: bool = True
) -> Killed:
    """Kill a command before every so manieth call.

    Args:
        replacing: The command.
        folder: An empty folder to work in.
        step: Kill before every so manieth call.
        least: Kill so many times at least: a command of fewer calls is killed again before each of them.
        exchange: Whether the system can exchange two names. Where it cannot, a folder may be missing after a kill, and
            the next run must find the old one.

    Raises:
        AssertionError: something was lost, or left over.
    """
    receiver, sender = SERVER.Pipe(duplex=False)
    child = forked(_drive, sender, replacing, folder, step, least, exchange)
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = f"the driver ended with {child.exitcode}"
    child.join()
    assert isinstance(found, Killed), found
    return found


def contents(path: Path) -> dict[str, Any] | None:
    """What an output holds, but for the times and places that it records; None where there is none."""
    if path.is_dir():
        files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
        return {name: _stable(file) for name, file in files.items()}
    if not path.exists():
        return None
    return datasets(path) if path.suffix == ".h5" else {"": path.read_bytes()}


def _stable(file: Path) -> Any:
    if file.suffix != ".json":
        return file.read_bytes()
    fields = json.loads(file.read_bytes())
    return {name: fields[name] for name in ("settings", "ranking", "metrics", "temperature") if name in fields}


def _drive(sender: Any, *arguments: Any) -> None:
    """Load what the command needs, and fork its runs."""
    import pyarrow.parquet  # noqa: F401

    try:
        sender.send(_kill_all(*arguments))
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")


def _kill_all(replacing: Replacing, folder: Path, step: int, least: int, exchange: bool) -> Killed:
    out, log, calls = folder / replacing.out, folder / "log", folder / "calls"
    arguments = [str(out) if argument == OUT else argument for argument in replacing.arguments]
    foreign = [folder / name.format(replacing.out) for name in FOREIGN]
    for path in foreign:
        path.write_text("mine")
    prepare = [partial(blocks_of, 8), *([] if exchange else [no_exchange])]
    old = contents(replacing.old)
    _place(replacing.old, out)
    assert _run(arguments, log, *prepare, partial(count_calls, calls)) == 0, log.read_text()
    new, order = contents(out), calls.read_text().split()
    calls.unlink()
    assert new is not None and new != old, "the command changes nothing"
    kills: Counter[str] = Counter()
    after: Counter[str] = Counter()
    numbers = range(1, len(order) + 1, step)
    for number in itertools.islice(itertools.cycle(numbers), max(least, len(numbers))):
        at = f"{replacing.name}, killed before call {number} of {len(order)}, {order[number - 1]}"
        _place(replacing.old, out)
        code = _run(arguments, log, *prepare, partial(kill_before, number))
        assert code == -signal.SIGKILL, f"{at}: it ended with {code}: {log.read_text()}"
        found = contents(out)
        assert found in (old, new) or (found is None and not exchange), f"{at}: {out} is neither the old nor the new"
        after["new" if found == new else "old" if found == old else "none"] += 1
        kills[order[number - 1]] += 1
        code = _run(arguments, log, *prepare)
        assert code == 0 and contents(out) == new, f"{at}: the next run ended with {code}: {log.read_text()}"
        left = {path.name for path in folder.iterdir()} - {out.name, log.name, *(path.name for path in foreign)}
        assert not left, f"{at}: the next run left {left}"
        assert all(path.read_text() == "mine" for path in foreign), at
    return Killed(dict(kills), after["old"], after["new"])


def _place(old: Path, out: Path) -> None:
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    (shutil.copytree if old.is_dir() else shutil.copy)(old, out)


def _run(arguments: Sequence[str], log: Path, *preparations: Callable[[], None]) -> int:
    """Run ``headstart ARGUMENTS`` in a fork of this process; return its exit code, or of a signal, less than 0."""
    child = os.fork()
    if not child:
        try:
            _command([*arguments], str(log), preparations)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def no_exchange() -> None:
    """Play a file system that cannot exchange two names."""
    from headstart.cache import workspace

    workspace.exchange = lambda one, other: False


def kill_before(number: int) -> None:
    """Kill this process before the n-th call of `POINTS`."""
    left = number

    def due(point: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    _around_each_call(due)


def count_calls(file: Path) -> None:
    """Write the calls of `POINTS` to a file at the end."""
    calls: list[str] = []
    end = os._exit

    def say_and_end(code: int) -> NoReturn:
        file.write_text(" ".join(calls))
        end(code)

    _around_each_call(calls.append)
    os._exit = say_and_end


def _around_each_call(first: Callable[[str], None]) -> None:
    from headstart.cache import workspace

    def around(point: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            first(point)
            return original(*arguments, **options)

        return called

    for point in POINTS:
        module: Any = workspace if point == "exchange" else os
        setattr(module, point, around(point, getattr(module, point)))
