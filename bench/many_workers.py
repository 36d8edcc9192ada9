"""A simulation of many workers over a billion rows: the planner and the queue, without an encoder and without Ray.

    .venv/bin/python bench/many_workers.py [--rows 100000000] [--workers 10,100,1000]

The planner divides real hashes of random texts, one in ten of which occurs twice; its time and memory are those of this
machine. The queue is the one that Ray's workers are given shards by. Its workers have a clock of their own: they encode
1,000 rows a second, each at its own speed (a log-normal one); one shard in fifty costs its worker, and one in two
hundred freezes it. What is printed of the queue is the simulated time, beside the time that it would take if nothing
ever went wrong, and the time that the queue itself took here.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from facts import cpu_name
from headstart.cache.identity import Identity
from headstart.stages.extraction.plan import even_counts, plan_shards
from headstart.stages.extraction.shards import Made, ShardJob
from headstart.stages.job_queue import Done, JobQueue, Lost, Ready, Worker
from headstart.stages.tables.scan import TableScan
from headstart.stages.tables.table import join_rows

BILLION = 1_000_000_000
SHARDS_A_WORKER = 8
ROWS_A_SECOND = 1000
START_SECONDS = 30.0
IDENTITY = Identity(
    **dict.fromkeys(("weights_sha256", "config_sha256", "tokenizer_sha256"), "0" * 64),
    **dict.fromkeys(("modules_sha256", "model", "chunk_pooling")),
    **{"prefix": "", "prefix_pooled": True, "lower_case": False, "pairs": False, "max_length": 128, "overlap": 0},
    **{"truncation_side": "right", "long": "cut", "precision": "float32", "quantization": "none", "features": ("cls",)},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--workers", default="10,100,1000")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.workers.split(",")]
    print(f"{cpu_name()}\n\n| workers | shards | simulated hours | without loss | lost | queue, s | MB |")
    print("|---|---|---|---|---|---|---|")
    for workers in counts:
        queued(workers)
    print("\n| rows | shards | plan, s | MB besides the scan |\n|---|---|---|---|")
    for rows in (arguments.rows // 10, arguments.rows):
        for workers in (counts[0], counts[-1]):
            planned(rows, workers * SHARDS_A_WORKER)


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes() -> int:
    """What this process itself has asked for and uses now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def planned(rows: int, shards: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (rows, 16), np.uint8)
    hashes[: rows // 20] = hashes[rng.integers(rows // 20, rows, rows // 20)]
    scan = TableScan(
        text_hashes=hashes,
        labels=None,
        label_names=None,
        label_kind=None,
        distinct_texts=rows,
        conflicting_texts=0,
        skipped=0,
        row_numbers=None,
        state=(),
        top=join_rows([]),
    )
    before, started = anonymous_bytes(), time.perf_counter()
    options = {"identity": IDENTITY, "storage": "float32", "block_rows": 1024, "window_rows": 4096}
    plan = plan_shards(scan, even_counts(rows, shards), **options)
    seconds, more = time.perf_counter() - started, peak_bytes() - before
    assert len(plan.shards) == shards
    print(f"| {rows:,} | {shards:,} | {seconds:.1f} | {more / 1e6:,.0f} |", flush=True)


class SimulatedPool:
    """Workers with a clock of their own, which jumps to the next thing that happens."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self._rows = rows  # of each shard
        self.clock, self.lost, self._rng, self._workers = 0.0, 0, random.Random(seed), 0
        self._speed: dict[Worker, float] = {}
        self._events: list[tuple[float, int, Ready | Done[Made] | Lost]] = []
        self._frozen: set[Worker] = set()

    def start(self) -> None:
        self._workers += 1
        self._speed[self._workers] = ROWS_A_SECOND * self._rng.lognormvariate(0, 0.2)
        self._push(START_SECONDS, Ready(self._workers))

    def give(self, worker: Worker, job: ShardJob) -> None:
        rows = self._rows[job.number - 1]
        seconds, fate = rows / self._speed[worker], self._rng.random()
        if fate < 0.02:
            self._push(seconds * self._rng.random(), Lost(worker, "simulated"))
        elif fate >= 0.025:  # else it freezes
            self._push(seconds, Done(worker, Made(number=job.number, rows=rows)))

    def stop(self, worker: Worker) -> None:
        self._frozen.add(worker)

    def wait(self, seconds: float) -> list[Ready | Done[Made] | Lost]:
        until = min(self._events[0][0] if self._events else float("inf"), self.clock + 60)
        self.clock, found = max(self.clock, until), []
        while self._events and self._events[0][0] <= self.clock:
            event = heapq.heappop(self._events)[2]
            if event.worker not in self._frozen:
                found.append(event)
        return found

    def _push(self, seconds: float, event: Ready | Done[Made] | Lost) -> None:
        heapq.heappush(self._events, (self.clock + seconds, len(self._speed) + self._rng.getrandbits(48), event))


def queued(workers: int) -> None:
    count, before = workers * SHARDS_A_WORKER, anonymous_bytes()
    started, rows, lost = time.perf_counter(), even_counts(BILLION, count), []
    pool = SimulatedPool(rows, seed=workers)
    queue = JobQueue[ShardJob, Made](
        pool, workers=workers, now=lambda: pool.clock, on_lost=lambda job, why: lost.append(why)
    )
    made = list(queue.run([ShardJob(number) for number in range(1, count + 1)]))
    assert sorted(each.number for each in made) == list(range(1, count + 1))
    seconds, more = time.perf_counter() - started, anonymous_bytes() - before
    best = BILLION / ROWS_A_SECOND / workers / 3600
    print(
        f"| {workers:,} | {count:,} | {pool.clock / 3600:.2f} | {best:.2f} | {len(lost):,} | {seconds:.2f} "
        f"| {more / 1e6:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
