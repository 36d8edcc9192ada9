"""Groups of heads trained by workers of Ray. Only paths, settings, results and notes cross it: a worker maps the caches
itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, SettingsError
from ..heads.fit import head_device
from ..heads.ranking import HeadResult
from ..job_queue import State
from ..progress import Event, Note, Report, silent
from ..ray_pool import RaySettings, open_workers
from ..settings import Labels, TrainSettings
from ..splits.divide import open_caches, require_unchanged
from ..units import duration
from .groups import Group, GroupTrainer, Progress, contents_of


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a worker made of a group."""

    group: Group
    results: list[HeadResult]
    notes: tuple[Note, ...]  # about the rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepWork:
    """What a worker must know to train groups of heads."""

    cache: Path
    validation: Path | None
    test: Path | None
    labels: Labels | None
    base: TrainSettings
    contents: list[dict[str, Any] | None]  # of the caches, where the sweep began

    @classmethod
    def of(
        cls,
        cache: str | os.PathLike[str],
        *,
        validation: str | os.PathLike[str] | None,
        test: str | os.PathLike[str] | None,
        labels: Labels | None,
        base: TrainSettings,
        contents: list[dict[str, Any] | None],
    ) -> SweepWork:
        """Name files as other processes find them.

        Raises:
            SettingsError: the table of labels is in memory.
        """
        if labels is not None:
            if not isinstance(labels.table, str | os.PathLike):
                raise SettingsError("labels in memory cannot be read by workers of Ray; write them to a file")
            if (table := Path(labels.table)).exists():  # else it is a URL
                labels = dataclasses.replace(labels, table=table.resolve())
        others = [None if path is None else Path(path).resolve() for path in (validation, test)]
        return cls(
            cache=Path(cache).resolve(),
            validation=others[0],
            test=others[1],
            labels=labels,
            base=base,
            contents=contents,
        )

    def open(self) -> Callable[[Group], Trained]:
        """Map the caches, verify their checksums, and choose a device.

        Raises:
            DamagedError: they hold something else than where the sweep began.
        """
        caches = open_caches(
            self.cache,
            validation=self.validation,
            test=self.test,
            settings=self.base,
            labels=self.labels,
            report=silent,
        )
        if contents_of(caches) != self.contents:
            raise DamagedError(
                f"{self.cache} and the caches and labels beside it are not what the sweep began with; all machines of "
                "the cluster must see the same files, and these must stay as they are"
            )
        notes: list[Note] = []

        def note(event: Event) -> None:
            if isinstance(event, Note):
                notes.append(event)

        trainer = GroupTrainer(caches, device=head_device(self.base.device), report=note)

        def train(group: Group) -> Trained:
            notes.clear()
            results = trainer.train(group, Progress([group], silent))
            require_unchanged(caches)
            return Trained(group, results, tuple(notes))

        return train


def train_on_ray(
    settings: RaySettings, work: SweepWork, groups: Sequence[Group], progress: Progress, *, report: Report
) -> Generator[tuple[Group, list[HeadResult]], None, None]:
    """Train groups with workers of Ray; yield each with its results, as it is finished.

    Raises:
        SettingsError: the cluster cannot be reached.
        HeadstartError: a group failed.
    """
    if not groups:
        return

    def show(state: State) -> None:
        progress.state(f"{state.running:,} workers at it, the slowest for {duration(state.longest)}")

    with open_workers(settings, work, most=len(groups), report=report, on_state=show) as queue:
        for trained in queue.run(groups):
            for note in trained.notes:
                report(note)
            progress.finished(trained.group.cells)
            yield trained.group, trained.results
