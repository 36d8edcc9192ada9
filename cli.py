"""The command line: it reads options, calls the function of a command, and prints the result.

What takes long to load is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import stopping
from .cache.errors import DamagedError, HeadstartError, SettingsError, UserError, spell_settings
from .options import Fields, command, refuse_unused, was_given, without_options
from .stages.encoders.memory import is_memory_full
from .stages.progress import Action, Event, Outcome, Report, Step, silent
from .stages.runs.savings import EncoderPasses, passes_of_extraction
from .stages.settings import (
    UNUSED,
    VARIED,
    VERIFY_SAMPLE,
    AuditSettings,
    Calibration,
    EvaluateSettings,
    ExportSettings,
    ExtractSettings,
    HeadKind,
    Labels,
    LineFormat,
    Long,
    ReportSettings,
    Solver,
    SpeedupSettings,
    SweepSettings,
    TableSettings,
    Tracker,
    TrainSettings,
    parse_deadline,
    parse_delimiter,
    setting,
)
from .stages.units import plain

_VARIED = tuple(dict.fromkeys(name for names in VARIED.values() for name in names))
_OF_SGD = ("seed", "seeds", "device")
"""Settings besides those of a head that AdamW alone uses."""
_DIALECT = tuple(field.name for field in dataclasses.fields(TableSettings))
_READING = ("text_column", "text_pair_column", *_DIALECT, "skip_bad_rows", "device", "allow_pickled_weights")
"""Settings with which the texts of a cache are read and encoded again."""
_TABLES = "CSV, TSV, text, JSON lines, Parquet or Arrow {}, or {} of one kind."
_MOVED_ENCODER = "Hub id or folder of the encoder, if it has moved."
_AS_MADE = {"skip_bad_rows": "Leave out bad rows. Give it if the cache was made with it."}
_IN_A_SWEEP = {
    "feature": "Features to compare. auto: the solver auto chooses; others take the only one, or model.",
    "solver": "Solvers to compare. Each is combined with the values that it uses.",
    "folds": "Rank by the mean over this many folds. 0: rank on held-out rows.",
}
_OF_TEXTS = {
    "text_column": "Column of the texts in the `texts` and the `labels` table.",
    "text_pair_column": "Column of the second texts in these tables, if rows are pairs of texts.",
    "label_column": "Column of the labels in the `labels` table.",
    "skip_bad_rows": "Leave out bad rows of these tables, instead of stopping at the first.",
}
_SWEPT = {"solver": (Solver.AUTO, Solver.SGD)}
"""Defaults of `sweep` that `train-head` does not have."""
_OF_INPUT = {
    "text_column": "Column of the texts in the `input` table.",
    "text_pair_column": "Column of the second texts in the `input` table, if the head was trained on pairs.",
    "skip_bad_rows": "Give a bad row an empty prediction and the column prediction_problem, instead of stopping at it.",
}
_OF_ROWS = {"skip_bad_rows": "Leave out bad rows of the table, instead of stopping at the first."}
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Values = dict[str, Any]
"""Values of options by name: arguments of a function."""


class OneLineErrors(TyperGroup):
    """Prints an error as one line, and sets the exit code: 2 for the user's mistake, 130 for Ctrl-C, 1 for the rest."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        words = _with_calibration(args)
        return self._in_one_line(
            lambda: super(OneLineErrors, self).make_context(info_name, words, parent, **extra), None
        )

    def invoke(self, ctx: Any) -> Any:
        stopping.exit_on_bus_error()
        return self._in_one_line(lambda: super(OneLineErrors, self).invoke(ctx), ctx)

    def _in_one_line(self, call: Callable[[], Any], ctx: Any) -> Any:
        """Return what a call returns. If it fails, print its error and leave the process.

        The process is left when the error is out of scope: generators that its frames hold are closed by then.
        """
        try:
            return call()
        except BrokenPipeError:  # the reader of the output is gone
            sys.stderr.close()
            sys.exit(1)
        except (KeyboardInterrupt, Exception) as error:
            command = None if ctx is None else ctx.invoked_subcommand
            explanation = _explain(stopping.request() or error, command)
            if explanation is None:
                raise
            message, code = spell_settings(explanation[0], _spelling(self, command)), explanation[1]
        print(f"headstart: {plain(message)}", file=sys.stderr)
        sys.exit(code)


def _with_calibration(words: list[str]) -> list[str]:
    """Give ``--calibrate`` its value where it stands alone, as it did when it had none."""
    option = "--calibrate"
    if words[:1] not in (["train-head"], ["sweep"]) or option not in words:
        return words
    place = words.index(option) + 1
    given = words[place : place + 1] and words[place] in list(Calibration)
    return words if given else [*words[:place], Calibration.TEMPERATURE, *words[place:]]


def _explain(error: BaseException, command: str | None) -> tuple[str, int] | None:
    """Return the message and the exit code for an error; None for an error that should not happen."""
    match error:
        case HeadstartError():
            return str(error), 2 if isinstance(error, UserError) else 1
        case OSError():
            return f"{error.filename or 'the system'}: {error.strerror or error}", 1
        case KeyboardInterrupt():
            kept = {
                "extract": "; finished blocks are kept, and the same command continues after them",
                "predict": "; finished windows of rows are kept, and the same command continues after them",
                "sweep": "; finished groups of heads are kept, and the same command continues after them",
                "repair": "; the cache is unchanged",
            }
            reason = "terminated" if isinstance(error, stopping.Terminated) else "interrupted"
            return reason + kept.get(command or "", ""), stopping.INTERRUPTED
        case _ if is_memory_full(error):
            return "the memory is full; use a smaller `batch_tokens` or `batch_size`, or set `memory`", 1
    return None


def _spelling(group: Any, command: str | None) -> Callable[[str, str | None], str]:
    """Return how to spell settings in messages of a command: as its options, else as options of another command.

    A name that no command has stays in backticks: it is a setting in Python alone, or no setting.
    """
    ours = group.commands.get(command)
    parameters = {each.name: each for other in [*group.commands.values(), ours] if other for each in other.params}

    def spell(name: str, value: str | None) -> str:
        if (name, value) == ("label_column", "None"):
            return "--no-labels"
        if name not in parameters:
            return f"`{name}`" if value is None else f"`{name}={value}`"
        option = parameters[name].opts[0] if parameters[name].param_type_name == "option" else name.upper()
        if value == "False" and parameters[name].secondary_opts:
            return str(parameters[name].secondary_opts[0])
        return option if value in (None, "True") else f"{option} {value}"

    return spell


class _Listener:
    """Shows the notes and steps of a command, and keeps its outcomes. It stops the run if Python lost a signal."""

    def __init__(self, show: Report) -> None:
        self._show = show
        self.outcomes: list[Outcome] = []

    def __call__(self, event: Event) -> None:
        stopping.raise_request()
        if isinstance(event, Outcome):
            self.outcomes.append(event)
        else:
            self._show(event)


@contextmanager
def _reporting(ctx: typer.Context, quiet: bool) -> Iterator[_Listener]:
    """Give a listener for a command. A quiet one shows nothing, and loads nothing."""
    if quiet:
        yield _Listener(silent)
        return
    from . import terminal

    spell = _spelling(ctx.parent and ctx.parent.command, ctx.command.name)
    with terminal.reporting(lambda text: spell_settings(text, spell)) as show:
        yield _Listener(show)


app = typer.Typer(
    cls=OneLineErrors,
    help="Run a frozen encoder once, cache its features, and train classifier heads on them in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"headstart {importlib.metadata.version('headstart')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Output:
    """How to write an output."""

    overwrite: bool = setting(False, "Replace the output, once the new one is complete.")
    wait: bool = setting(False, "If another run is writing the output, wait until it has finished.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OnRay:
    """How work is divided among processes of Ray."""

    ray: str | None = setting(
        None, "Work on Ray: local, for this machine's GPUs, or the address of a running cluster.", shown="no Ray"
    )
    workers: int | None = setting(None, "Processes of Ray.", shown="one for each GPU, or each machine without")
    deadline: float | None = setting(
        None,
        "Time that a process may take for a shard or a group of heads before another gets it, such as 30min.",
        parse=parse_deadline,
        shown="ten times the median of those done, at least 10min",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HeadData:
    """What heads are trained and tested on, besides the cache."""

    test: Path | None = setting(None, "Cache to test on, instead of held-out rows.")
    validation: Path | None = setting(None, "Cache for validation, instead of held-out rows.")
    labels: Path | None = setting(
        None, "Table whose labels replace the labels of the caches. Rows are matched by their texts."
    )

    def arguments(self, columns: Values) -> Values:
        """Return the arguments of `train_head` and `sweep`; ``columns`` are those of the table of labels."""
        labels = None if self.labels is None else Labels(self.labels, **columns)
        return {"test": self.test, "validation": self.validation, "labels": labels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Logging:
    """Where heads are logged to, besides their folder."""

    log: Tracker | None = setting(  # several, as an option
        None, "Trackers to log settings, epochs and metrics to, once the output is complete.", shown="none"
    )
    log_dir: Path | None = setting(
        None,
        "Folder for the files of tensorboard and mlflow.",
        shown="the run's own for tensorboard; MLFLOW_TRACKING_URI or mlruns for mlflow",
    )

    def report(self, ctx: typer.Context, listener: Report) -> Report:
        """Return the listener, with these trackers."""
        if not self.log:
            refuse_unused(ctx, "without --log", "log_dir")
            return listener
        from .stages.trackers import log_to

        return log_to(*self.log, log_dir=self.log_dir, report=listener)


@command(app, "extract")
def extract_command(
    *,
    ctx: typer.Context,
    tables: Annotated[list[Path], typer.Argument(help=_TABLES.format("files", "folders"))],
    out: Annotated[Path, typer.Option(help="Cache to write; with several tables, the folder for their caches.")],
    settings: Annotated[ExtractSettings, Fields(ExtractSettings, without=("block_rows", "window_rows"))],
    no_labels: Annotated[bool, typer.Option("--no-labels", help="The table has no labels.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Update the cache to the table's current rows; encode only new texts.")
    ] = False,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Another cache to copy features from; may be given several times.")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Divide the rows into so many files, the shards, beside a cache that names them.",
            min=1,
            show_default="one file, or as many as the cache has",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Make one shard, such as 3/16: the third of 16. The run that ends last writes the cache."),
    ] = None,
    array: Annotated[
        bool,
        typer.Option(
            "--array", help="Print a script for SLURM that makes what is left of the shards, one in each task."
        ),
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add the table's rows to a cache of shards, as shards of their own."),
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            help="URL of a folder that holds the shards, too, such as s3://bucket/large. With --shard, join writes the "
            "cache."
        ),
    ] = None,
    on_ray: Annotated[Values, Fields(_OnRay)],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Encode the texts of a table once, and cache their features."""
    if no_labels:
        refuse_unused(ctx, "with --no-labels", "label_column", "label_delimiter", "task", "order")
        settings = dataclasses.replace(settings, label_column=None)
    if settings.long is not Long.CHUNKS:
        refuse_unused(ctx, "without --long chunks", "chunk_pooling")
    _refuse_unused_on_ray(ctx, on_ray)
    if len(tables) > 1:
        refuse_unused(ctx, "with several tables", "shards", "shard", "array", "append", "store", "ray")
    if array:
        refuse_unused(ctx, "with --array", "shard", "append", "ray", "quiet")
        _show_array(ctx, tables[0], out, settings, {"shards": shards, "update": update, "store": store, **output})
        return
    with _reporting(ctx, quiet) as listener:
        from .stages.extract import extract, extract_tables
        from .stages.inspect import inspect_path

        options: Values = {"update": update, "reuse": reuse or (), "report": listener, **output}
        if len(tables) == 1:
            how: Values = {"shards": shards, "shard": shard, "append": append, "store": store, **on_ray}
            extract(tables[0], out, settings, **how, **options)
        else:
            extract_tables(tables, out, settings, **options)
    if quiet:
        return
    from . import terminal

    # a shard may lie in its store alone
    outcomes = [outcome for outcome in listener.outcomes if outcome.output.exists()]
    caches = [inspect_path(outcome.output) for outcome in outcomes]
    for outcome, cache in zip(outcomes, caches, strict=True):
        if outcome.action is not Action.CURRENT:
            terminal.show_cache(cache)
    terminal.show_passes(passes_of_extraction([cache["record"] for cache in caches], outcomes))


def _show_array(ctx: typer.Context, table: Path, out: Path, settings: ExtractSettings, options: Values) -> None:
    """Plan the shards, and show the script whose tasks make them, with this command's own options."""
    with _reporting(ctx, quiet=False) as listener:
        from .stages.extract import plan_shards

        found = plan_shards(table, out, settings, report=listener, **options)
    from . import terminal

    arguments = without_options(sys.argv[1:], ("--shards",), ("--array",))
    terminal.show_array(arguments, out, shards=found.shards, left=found.left)


@command(app, "join")
def join_command(
    *,
    ctx: typer.Context,
    cache: Annotated[
        Path, typer.Argument(help="Joined cache, whose shards lie in the folder of its name and .shards.")
    ],
    copy: Annotated[Path | None, typer.Option(help="Copy all rows into one file, this one, instead.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="URL of a folder with the shards, such as s3://bucket/large; what is missing here is taken."),
    ] = None,
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Write a cache that names its shards again, or copy its rows into one file."""
    if copy is None:
        refuse_unused(ctx, "without --copy", "overwrite")
    with _reporting(ctx, quiet) as listener:
        from .stages.inspect import inspect_path
        from .stages.join import join

        written = join(cache, copy=copy, store=store, report=listener, **output)
    if not quiet:
        from . import terminal

        terminal.show_cache(inspect_path(written))


@command(app, "repair")
def repair_command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="Cache to repair.")],
    table: Annotated[Path, typer.Argument(help="Table that the cache was made from.")],
    encoder: Annotated[
        str | None, typer.Option(help=_MOVED_ENCODER, show_default="where the cache says it was")
    ] = None,
    settings: Annotated[
        ExtractSettings, Fields(ExtractSettings, only=(*_READING, "label_column", "label_delimiter"), help=_AS_MADE)
    ],
    output: Annotated[Values, Fields(_Output, only=("wait",))],
    quiet: Quiet = False,
) -> None:
    """Encode the damaged parts of a cache again."""
    with _reporting(ctx, quiet) as listener:
        from .stages.repair import repair

        repair(cache, table, encoder=encoder, settings=settings, report=listener, **output)


@command(app, "train-head")
def train_head_command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="Cache to train on.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    data: Annotated[_HeadData, Fields(_HeadData)],
    columns: Annotated[Values, Fields(Labels, without=("table",))],
    settings: Annotated[TrainSettings, Fields(TrainSettings)],
    logging: Annotated[_Logging, Fields(_Logging, lists=("log",))],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Train a classifier head on a cache, and test it."""
    _refuse_unused_training(ctx, data, solvers=(settings.solver,), heads=(settings.head,))
    if settings.solver is Solver.AUTO:
        refuse_unused(ctx, "without --solver sgd or exact", "fold", "validation_fraction")
    if settings.folds:
        refuse_unused(ctx, "with --folds", "validation_fraction")
    with _reporting(ctx, quiet) as listener:
        from .stages.inspect import inspect_path
        from .stages.train_head import train_head

        train_head(cache, out, settings, report=logging.report(ctx, listener), **data.arguments(columns), **output)
    if not quiet:
        from . import terminal

        run = inspect_path(out)
        terminal.show_run(run)
        terminal.show_passes(EncoderPasses(**run["encoder_passes"]))


@command(app, "sweep")
def sweep_command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="Cache to train on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    data: Annotated[_HeadData, Fields(_HeadData)],
    columns: Annotated[Values, Fields(Labels, without=("table",))],
    values: Annotated[
        Values, Fields(TrainSettings, without=("fold", "seed"), lists=_VARIED, defaults=_SWEPT, help=_IN_A_SWEEP)
    ],
    ranking: Annotated[Values, Fields(SweepSettings, only=("seeds", "rank_by"))],
    logging: Annotated[_Logging, Fields(_Logging, lists=("log",))],
    on_ray: Annotated[Values, Fields(_OnRay)],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Train heads with many settings, rank them, and test the best.

    Some options take several values, separated by commas. All combinations of the values are trained.
    """
    given = [name for name in _VARIED if name in ("solver", "feature", "class_weight") or was_given(ctx, name)]
    varied = {name: values[name] for name in given}
    common = {name: value for name, value in values.items() if name not in _VARIED}
    _refuse_unused_training(ctx, data, solvers=varied["solver"], heads=varied.get("head", (HeadKind.LINEAR,)))
    _refuse_unused_on_ray(ctx, on_ray)
    settings = SweepSettings.of(varied | common | ranking)
    with _reporting(ctx, quiet) as listener:
        from .stages.inspect import inspect_path
        from .stages.sweep import sweep

        arguments = data.arguments(columns) | on_ray | output
        sweep(cache, out, settings, report=logging.report(ctx, listener), **arguments)
    if not quiet:
        from . import terminal

        result = inspect_path(out)
        terminal.show_sweep(result)
        terminal.show_run(inspect_path(out / "winner"))
        terminal.show_passes(EncoderPasses(**result["encoder_passes"]))


def _refuse_unused_on_ray(ctx: typer.Context, on_ray: Values) -> None:
    """Refuse options of Ray without Ray."""
    if on_ray["ray"] is None:
        refuse_unused(ctx, "without --ray", "workers", "deadline")


def _refuse_unused_training(
    ctx: typer.Context, data: _HeadData, *, solvers: tuple[Solver, ...], heads: tuple[HeadKind, ...]
) -> None:
    """Refuse options that have no effect together with other options."""
    test, validation = data.test is not None, data.validation is not None
    for applies, reason, names in (
        (test, "with --test", ("test_fraction",)),
        (validation, "with --validation", ("validation_fraction",)),
        (test and validation, "with both --test and --validation", ("split_seed",)),
        (not (test or validation), "without --test or --validation", ("keep_shared",)),
        (data.labels is None, "without --labels", (*_OF_INPUT, "label_column", "label_delimiter", *_DIALECT)),
        (HeadKind.MLP not in heads, "without --head mlp", ("hidden",)),
    ):
        if applies:
            refuse_unused(ctx, reason, *names)
    unused = {solver: (*names, *_OF_SGD * (solver is not Solver.SGD)) for solver, names in UNUSED.items()}
    for name in sorted({name for names in unused.values() for name in names}):
        using = [solver for solver in Solver if name not in unused[solver]]
        if not set(using) & set(solvers):
            refuse_unused(ctx, f"without --solver {' or '.join(using)}", name)


@command(app, "predict")
def predict_command(
    *,
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder of the head.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.", show_default=False)] = None,
    input_table: Annotated[
        Path | None,
        typer.Option("--input", help="Table of texts to classify; - for lines of the standard input, as they come."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the results of --input: .csv, .tsv, .jsonl or .parquet.")
    ] = None,
    line_format: Annotated[
        LineFormat, typer.Option("--format", help="What a line of --input - is. The answers are JSON lines.")
    ] = LineFormat.TEXT,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Cache of the run's encoder, or a folder of them: texts of --input that it holds are not encoded."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the features of other texts in the folder --cache.")
    ] = False,
    encoder: Annotated[str | None, typer.Option(help=_MOVED_ENCODER, show_default="where the run says it was")] = None,
    columns: Annotated[Values, Fields(ExtractSettings, only=tuple(_OF_INPUT), help=_OF_INPUT)],
    label_delimiter: Annotated[
        str, typer.Option(help="Text between several labels of a row, in a .csv or .tsv of results.")
    ] = ";",
    dialect: Annotated[TableSettings, Fields(TableSettings)],
    encoding: Annotated[Values, Fields(ExtractSettings, only=("device", "allow_pickled_weights"))],
    output: Annotated[Values, Fields(_Output, only=("overwrite",))],
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Classify texts, or a table of texts, with a trained head."""
    streamed = str(input_table) == "-"
    if bool(texts) == (input_table is not None) or (input_table is None or streamed) == (out is not None):
        raise SettingsError(
            "give either texts, or a table with --input and a file for the results with --out, or --input - alone"
        )
    if input_table is None:
        refuse_unused(ctx, "without --input", *columns)
    if input_table is None or streamed:
        reason = "with --input -" if streamed else "without --input"
        refuse_unused(ctx, reason, "skip_bad_rows", "label_delimiter", "cache", "keep", *_DIALECT, *output)
    if not streamed:
        refuse_unused(ctx, "without --input -", "line_format")
    encoding["encoder"] = encoder
    if streamed:
        _predict_stdin(ctx, run, quiet, {**encoding, **columns, "line_format": line_format})
        return
    with _reporting(ctx, quiet) as listener:
        from .stages.predict import predict, predict_table

        if input_table is not None and out is not None:
            options = columns | encoding | output | {"cache": cache, "keep": keep}
            options["label_delimiter"] = parse_delimiter(label_delimiter)
            written = predict_table(run, input_table, out, table_settings=dialect, report=listener, **options)
        else:
            found = predict(run, texts or [], report=listener, **encoding)
    if input_table is None:
        from . import terminal

        terminal.show_predictions(found.texts, found.labels, found.label_names, found.probabilities)
    elif not quiet:
        print(plain(str(written)))


def _predict_stdin(ctx: typer.Context, run: Path, quiet: bool, options: Values) -> None:
    """Answer lines of the standard input as they come. Ctrl-C ends it as the end of the input does, without a word."""
    from .stages.predict import predict_lines

    def write(answers: str) -> None:
        sys.stdout.write(answers)
        sys.stdout.flush()

    del options["skip_bad_rows"]  # a bad line is answered with its problem
    stopped = False
    try:
        with _reporting(ctx, quiet) as listener, open(sys.stdin.fileno(), "rb", closefd=False) as source:

            def note(event: Event) -> None:  # a bar would stand between what is typed and its answer
                if not isinstance(event, Step):
                    listener(event)

            predict_lines(run, source, write, report=note, **options)
    except KeyboardInterrupt:
        stopped = True
    if stopped:
        sys.exit(stopping.INTERRUPTED)


@command(app, "evaluate")
def evaluate_command(
    *,
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder of the head.")],
    rows: Annotated[Path, typer.Argument(help="New rows with labels: a cache of the run's encoder, or a table.")],
    settings: Annotated[EvaluateSettings, Fields(EvaluateSettings)],
    train_cache: Annotated[
        Path | None,
        typer.Option(help="Cache that the head was trained on.", show_default="where the run says it was"),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help=_MOVED_ENCODER, show_default="where the run says it was")] = None,
    reading: Annotated[
        ExtractSettings, Fields(ExtractSettings, only=(*_READING, "label_column", "label_delimiter"), help=_OF_ROWS)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write the metrics and the predictions to.")] = None,
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Score a trained head on new rows, and say how far they are from those of training."""
    if out is None:
        refuse_unused(ctx, "without --out", *output)
    with _reporting(ctx, quiet) as listener:
        from .stages.evaluate import evaluate

        options: Values = {"train_cache": train_cache, "encoder": encoder, "out": out, **output}
        found = evaluate(run, rows, settings, reading=reading, report=listener, **options)
    if not quiet:
        from . import terminal

        terminal.show_evaluation(found | {"path": None if out is None else str(out)})


@command(app, "speedup")
def speedup_command(
    *,
    ctx: typer.Context,
    table: Annotated[Path, typer.Argument(help=_TABLES.format("file", "a folder"))],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[
        SpeedupSettings,
        Fields(SpeedupSettings, without=("quality_train", "quality_test", "quality_length", "sample")),
    ],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Measure how much time a cache saves on this machine.

    It is compared with a program that encodes every text in every epoch.
    """
    if not settings.quality:
        refuse_unused(ctx, "with --no-quality", "seeds")
    with _reporting(ctx, quiet) as listener:
        from .stages.inspect import inspect_path
        from .stages.speedup import speedup

        speedup(table, out, settings, report=listener, **output)
    if not quiet:
        from . import terminal

        terminal.show_speedup(inspect_path(out))


@command(app, "audit")
def audit_command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="Cache whose labels are audited.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[AuditSettings, Fields(AuditSettings)],
    pool: Annotated[Path | None, typer.Option(help="Cache of texts to choose from, for labelling.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table whose labels replace those of the cache. Rows are matched by their texts."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Table that holds the texts, to show and write them beside the rows.")
    ] = None,
    reading: Annotated[ExtractSettings, Fields(ExtractSettings, only=(*_READING[:-2], "label_column"), help=_OF_TEXTS)],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Find labels that are likely wrong, near-duplicates with different labels, outliers, and what to label next."""
    if texts is None and labels is None:
        refuse_unused(ctx, "without --texts or --labels", *_READING[:-2])
    if labels is None:
        refuse_unused(ctx, "without --labels", "label_column")
    columns = {name: getattr(reading, name) for name in (*_READING[:-2], "label_column")}
    with _reporting(ctx, quiet) as listener:
        from .stages.audit import audit
        from .stages.inspect import inspect_path

        replaced = None if labels is None else Labels(labels, **columns)
        tables: dict[str, Any] = {"pool": pool, "labels": replaced, "texts": texts, "reading": reading}
        audit(cache, out, settings, **tables, report=listener, **output)
    if not quiet:
        from . import terminal

        found = inspect_path(out)
        terminal.show_audit(found)
        terminal.show_passes(EncoderPasses(**found["encoder_passes"]))


@command(app, "report")
def report_command(
    *,
    ctx: typer.Context,
    sources: Annotated[list[Path], typer.Argument(help="Folders of runs or sweeps.")],
    out: Annotated[Path, typer.Option(help="Page to write, such as report.html.")],
    settings: Annotated[ReportSettings, Fields(ReportSettings)],
    cache: Annotated[
        Path | None, typer.Option(help="Cache that the heads were trained on, for a map of its features.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Table of the test rows, to show the texts that a head was wrong about.")
    ] = None,
    reading: Annotated[ExtractSettings, Fields(ExtractSettings, only=_READING[:-2], help=_OF_TEXTS)],
    audit: Annotated[Path | None, typer.Option(help="Folder of an audit, to show what it found.")] = None,
    output: Annotated[Values, Fields(_Output, only=("overwrite",))],
    quiet: Quiet = False,
) -> None:
    """Write one page about runs and sweeps, to look at in a browser. It needs no network."""
    if texts is None:
        refuse_unused(ctx, "without --texts", *_READING[:-2])
    if cache is None:
        refuse_unused(ctx, "without --cache", "points")
    with _reporting(ctx, quiet) as listener:
        from .stages.report import report

        given: Values = {"cache": cache, "texts": texts, "reading": reading, "audit": audit}
        written = report(sources, out, settings, **given, report=listener, **output)
    if not quiet:
        print(plain(str(written)))


@command(app, "export")
def export_command(
    *,
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder of the head.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[ExportSettings, Fields(ExportSettings)],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Table of texts to compare with what headstart says.", show_default="texts that are built in"
        ),
    ] = None,
    reading: Annotated[ExtractSettings, Fields(ExtractSettings, only=_READING[:-2], help=_OF_TEXTS)],
    encoder: Annotated[str | None, typer.Option(help=_MOVED_ENCODER, show_default="where the run says it was")] = None,
    loading: Annotated[Values, Fields(ExtractSettings, only=("allow_pickled_weights",))],
    output: Annotated[Values, Fields(_Output)],
    quiet: Quiet = False,
) -> None:
    """Write a head with its encoder in a format of another library, and compare both.

    The folder is kept only if it says what headstart says.
    """
    if texts is None:
        refuse_unused(ctx, "without --texts", "sample", *_READING[:-2])
    with _reporting(ctx, quiet) as listener:
        from .stages.export import export
        from .stages.inspect import inspect_path

        options: Values = {"encoder": encoder, **loading, **output}
        export(run, out, settings, texts=texts, reading=reading, report=listener, **options)
    if not quiet:
        from . import terminal

        terminal.show_export(inspect_path(out))


@command(app, "verify")
def verify_command(
    *,
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="Cache to check.")],
    encoder: Annotated[
        str | None, typer.Option(help="Encode a sample of the rows again with this encoder: a hub id or a folder.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Table that the cache was made from.", show_default="where the cache says it was"),
    ] = None,
    sample: Annotated[int, typer.Option(help="Number of rows to encode again, at most.", min=1)] = VERIFY_SAMPLE,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the choice of rows.", show_default="another one each time")
    ] = None,
    settings: Annotated[ExtractSettings, Fields(ExtractSettings, only=_READING, help=_AS_MADE)],
    quiet: Quiet = False,
) -> None:
    """Check every byte of a cache.

    With --encoder, also encode a sample of the rows again, and compare the features.
    """
    if encoder is None:
        refuse_unused(ctx, "without --encoder", "table", "sample", "seed", *_READING)
    with _reporting(ctx, quiet) as listener:
        from .stages.verify import verify

        result = verify(
            cache, encoder=encoder, table=table, settings=settings, sample=sample, seed=seed, report=listener
        )
    for finding in result.findings:
        print(plain(f"{result.path}: {finding.where}: {finding.what}"))
    if any(finding.damage for finding in result.findings):
        raise DamagedError(
            f"{result.path} is damaged; headstart repair encodes the damaged blocks again, "
            "headstart extract with `overwrite=True` encodes all of it"
        )
    if result.findings:
        raise DamagedError(
            f"{result.path} has correct checksums, but holds values that headstart extract does not write; "
            "extract it again with `overwrite=True`"
        )
    if not quiet:
        from . import terminal

        terminal.show_verified(result)


@command(app, "inspect")
def inspect_command(
    path: Annotated[
        Path,
        typer.Argument(
            help="A cache, or the folder of a run, a sweep, an audit, an evaluation, an export or a report."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what is in a cache, a run, a sweep, an audit, an evaluation, an export or a speedup report."""
    from . import terminal
    from .stages.inspect import inspect_path

    description = inspect_path(path)
    if as_json:
        typer.echo(json.dumps(description, ensure_ascii=False, indent=1))
        return
    shows = {
        "cache": terminal.show_cache,
        "sweep": terminal.show_sweep,
        "audit": terminal.show_audit,
        "evaluation": terminal.show_evaluation,
        "export": terminal.show_export,
        "speedup": terminal.show_speedup,
    }
    try:
        shows.get(description["kind"], terminal.show_run)(description)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:  # headstart did not write it
        raise DamagedError(
            f"{path}: its record is not as headstart writes it ({type(error).__name__}: {error}); --json prints it"
        ) from error


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 should not end a run
    app(prog_name="headstart")
