"""Size and load time of a report on a sweep of 200 heads, and a run read back by TensorBoard and MLflow.

    python bench/report.py CACHE

Needs the extra dev-report and a Chromium (CHROMIUM names another than /usr/bin/chromium).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from headstart.stages.report import report
from headstart.stages.settings import SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.trackers import log_to

_LOADS = 5
_VALUES = {
    "learning_rate": (0.001, 0.003, 0.01, 0.03, 0.1),
    "dropout": (0.0, 0.1, 0.3, 0.5, 0.7),
    "weight_decay": (0.0, 0.001, 0.01, 0.1),
}


def main() -> None:
    cache = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = TrainSettings(solver="sgd", feature="model", epochs=20)
        settings = SweepSettings(base=base, values=_VALUES, seeds=(0, 1))
        log = log_to("tensorboard", "mlflow", log_dir=folder / "logs")
        sweep(cache, folder / "sweep", settings, report=log)
        started = time.perf_counter()
        page = report(folder / "sweep", folder / "report.html", cache=cache)
        print(
            f"a page of 200 heads: {page.stat().st_size / 1e6:.2f} MB, written in {time.perf_counter() - started:.2f} s"
        )
        _load(page)
        _read_back(folder / "logs")


def _load(page: Path) -> None:
    """Print how long Chromium takes until the page is read, and until all plots are drawn."""
    from playwright.sync_api import sync_playwright

    read, drawn = [], []
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(_LOADS):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_function("document.documentElement.dataset.plots === 'drawn'")
            timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            read.append(tab.evaluate(timing))
            drawn.append(tab.evaluate("performance.getEntriesByName('plots-drawn')[0].startTime"))
            plots = tab.locator(".plot").count()
            tab.close()
        browser.close()
    for what, times in (("DOMContentLoaded", read), (f"all {plots} plots drawn", drawn)):
        spread = f"{min(times):.0f} to {max(times):.0f}"
        print(f"{what} after {statistics.median(times):.0f} ms (median of {_LOADS}: {spread})")


def _read_back(logs: Path) -> None:
    """Print what the libraries read of the winner."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs / "sweep")).Reload()
    accuracy = events.Scalars("test_accuracy")[0].value
    epochs = len(events.Scalars("validation_loss"))
    print(f"TensorBoard reads: test_accuracy {accuracy:.4f}, {epochs} epochs of the winner")
    client = MlflowClient(tracking_uri=(logs / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("headstart")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (winner,) = (run for run in runs if run.info.run_name == "sweep")
    low, value, high = (winner.data.metrics[f"test_accuracy{end}"] for end in ("_low", "", "_high"))
    print(f"MLflow reads: {len(runs)} runs; the winner's test_accuracy {value:.4f} (95%: {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
