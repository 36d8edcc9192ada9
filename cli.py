"""The command line: it parses, calls a stage, and prints. Defaults are those of the stages' settings.

What takes long to load is loaded inside a command, so that ``--help`` is quick.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import stopping
from .cache.errors import DamagedError, HeadstartError, SettingsError, UserError, spell_settings
from .stages.encoders.memory import is_memory_full
from .stages.progress import Event, Outcome, Report, silent
from .stages.runs.savings import EncoderPasses, passes_of_extraction
from .stages.settings import (
    VERIFY_SAMPLE,
    ClassWeight,
    ExtractSettings,
    HeadKind,
    Labels,
    Precision,
    Ranking,
    Schedule,
    Solver,
    SpeedupSettings,
    Storage,
    SweepSettings,
    TrainSettings,
    parse_duration,
    parse_memory,
)
from .stages.units import plain

OUT_OF_MEMORY = "the memory is full; try a smaller --batch-tokens or --batch-size, or --memory"
OPTIONS = {"feature": "features", "learning_rate": "lr"}
"""Options whose names are not those of their settings."""
BY_BATCHES = (
    *("epochs", "batch_size", "lr", "schedule", "warmup", "weight_decay"),
    *("dropout", "center", "label_smoothing", "patience", "seed", "device"),
)
"""What shapes training by batches, and nothing else."""
EXTRACT, TRAIN, SWEEP, SPEEDUP = ExtractSettings(), TrainSettings(), SweepSettings(), SpeedupSettings()


class OneLineErrors(TyperGroup):
    """Ends a command that failed with one line and its exit code: 2 the user's mistake, 1 anything else, 130 stopped
    with Ctrl-C or SIGTERM."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        return _in_one_line(partial(super().make_context, *arguments, **options), lambda: None)

    def invoke(self, ctx: Any) -> Any:
        return _in_one_line(partial(super().invoke, ctx), lambda: ctx.invoked_subcommand)


def _in_one_line(call: Callable[[], Any], command: Callable[[], str | None]) -> Any:
    """What a call returns; if it fails, its error is printed and the process left.

    That is done after the error is let go of: generators that its frames hold are closed by then.
    """
    try:
        return call()
    except BrokenPipeError:  # whoever read our output has gone
        sys.stderr.close()
        sys.exit(1)
    except (KeyboardInterrupt, Exception) as error:
        found = _explained(stopping.asked() or error, command())
        if found is None:
            raise
    message, code = found
    print(f"headstart: {plain(message)}", file=sys.stderr)
    sys.exit(code)


def _explained(error: BaseException, command: str | None) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None of one that should not have happened."""
    match error:
        case HeadstartError():
            return spell_settings(str(error), _as_option), 2 if isinstance(error, UserError) else 1
        case OSError():
            return f"{error.filename or 'the system'}: {error.strerror or error}", 1
        case KeyboardInterrupt():
            kept = {"extract": "blocks", "sweep": "groups of heads"}.get(command or "")
            carry_on = f"; finished {kept} are kept, and the same command carries on with them" if kept else ""
            carry_on = "; the cache is as it was" if command == "repair" else carry_on
            why = "terminated" if isinstance(error, stopping.Terminated) else "interrupted"
            return why + carry_on, stopping.INTERRUPTED
        case MemoryError():
            return OUT_OF_MEMORY, 1
        case RuntimeError() if is_memory_full(error):
            return OUT_OF_MEMORY, 1
    return None


def _as_option(setting: str, value: str | None) -> str:
    """How the command line spells a setting, with the value that a message gives it."""
    if (setting, value) == ("label_column", "None"):
        return "--no-labels"
    option = "--" + OPTIONS.get(setting, setting).replace("_", "-")
    return option if value in (None, "True") else f"{option} {value}"


@contextmanager
def _reporting(quiet: bool) -> Iterator[Report]:
    """A listener for a stage; where quiet, one that shows nothing and loads nothing to show it with."""
    if quiet:
        yield stopping.heeding(silent)
    else:
        from . import terminal

        with terminal.reporting() as report:
            yield report


app = typer.Typer(
    cls=OneLineErrors,
    help="Run a frozen encoder once, cache its features, and train classifier heads on them in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _refuse_idle(ctx: typer.Context, why: str, *names: str) -> None:
    """Refuse options that were given and would be ignored."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise SettingsError(f"{'/'.join([*parameter.opts, *parameter.secondary_opts])} {why}")


def _refuse_idle_rows(ctx: typer.Context, test: Path | None, validation: Path | None, labels: Path | None) -> None:
    """Refuse shares of rows where a cache says which they are, and columns of a table that there is not."""
    if test is not None:
        _refuse_idle(ctx, "is for rows that are held out, and --test brings others; leave one out", "test_fraction")
    if validation is not None:
        _refuse_idle(ctx, "is for rows that are held out, and --validation brings others", "validation_fraction")
    if test is None and validation is None:
        _refuse_idle(ctx, "is for texts that --test or --validation has; give one of them", "keep_shared")
    if test is not None and validation is not None:
        _refuse_idle(ctx, "fixes which rows are held out, and none are", "split_seed")
    if labels is None:
        _refuse_idle(
            ctx, "is of the table of --labels; give that, too", *("text_column", "text_pair_column", "label_column")
        )


def _refuse_idle_training(ctx: typer.Context, solver: Solver, head: HeadKind) -> None:
    """Refuse what shapes another kind of training or head."""
    if solver is Solver.EXACT:
        _refuse_idle(ctx, "is of training by batches, which --solver exact does without; leave one out", *BY_BATCHES)
    else:
        _refuse_idle(ctx, "is the exact solver's penalty; give --solver exact, too", "l2")
    if head is HeadKind.LINEAR:
        _refuse_idle(ctx, "is of an MLP; give --head mlp, too", "hidden")


Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output, once the new one is complete.")]
Wait = Annotated[bool, typer.Option("--wait", help="Where another run is writing the output, wait until it is done.")]
Device = Annotated[str, typer.Option(help="auto, or a torch device: cpu, cuda, cuda:1, mps.")]
Pickled = Annotated[
    bool, typer.Option("--allow-pickled-weights", help="Read pytorch_model.bin where there is no safetensors file.")
]


@app.command("extract")
def extract_command(
    ctx: typer.Context,
    tables: Annotated[
        list[Path], typer.Argument(help="CSV, TSV, JSON lines or Parquet files, or folders of one kind.")
    ],
    out: Annotated[Path, typer.Option(help="The cache to write; of several tables, the folder for their caches.")],
    encoder: Annotated[str, typer.Option(help="Hub id, or a folder with a model's files.")] = EXTRACT.encoder,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = EXTRACT.revision,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = EXTRACT.text_column,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of second texts, read with the first as one sequence.")
    ] = EXTRACT.text_pair_column,
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = EXTRACT.label_column or "label",
    features: Annotated[
        str, typer.Option(help="Comma-separated: cls, mean, max, pooler, layer6.cls, layer*.cls.")
    ] = ",".join(EXTRACT.features),
    no_labels: Annotated[bool, typer.Option("--no-labels", help="The table has no labels.")] = False,
    prefix: Annotated[str, typer.Option(help="Text put before every text; some encoders want one.")] = EXTRACT.prefix,
    max_length: Annotated[int, typer.Option(help="Tokens at which a text is cut.")] = EXTRACT.max_length,
    precision: Annotated[Precision, typer.Option(help="What the encoder computes in.")] = EXTRACT.precision,
    storage: Annotated[Storage, typer.Option(help="How features are stored.")] = EXTRACT.storage,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens in a batch.", show_default="what suits the device")
    ] = EXTRACT.batch_tokens,
    device: Device = EXTRACT.device,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows without text or label, and count them.")
    ] = EXTRACT.skip_bad_rows,
    allow_pickled_weights: Pickled = EXTRACT.allow_pickled_weights,
    update: Annotated[
        bool, typer.Option("--update", help="Make the cache that of the table's rows now; encode only what it lacks.")
    ] = False,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Another cache to take rows from; may be given several times.")
    ] = None,
    overwrite: Overwrite = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Stage one: encode a table's texts once, into a cache."""
    if no_labels:
        _refuse_idle(ctx, "names the labels, of which --no-labels says that there are none", "label_column")
    settings = ExtractSettings(
        encoder=encoder,
        revision=revision,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=None if no_labels else label_column,
        features=tuple(features.split(",")),
        prefix=prefix,
        max_length=max_length,
        precision=precision,
        storage=storage,
        batch_tokens=batch_tokens,
        device=device,
        skip_bad_rows=skip_bad_rows,
        allow_pickled_weights=allow_pickled_weights,
    )
    with _reporting(quiet) as report:
        from .stages.extract import extract, extract_tables
        from .stages.inspect import inspect_path

        started = time.time()
        outcomes: list[Outcome] = []

        def listen(event: Event) -> None:
            if isinstance(event, Outcome):
                outcomes.append(event)
            report(event)

        options: dict[str, Any] = {
            "update": update,
            "reuse": reuse or (),
            "overwrite": overwrite,
            "wait": wait,
            "report": listen,
        }
        if len(tables) == 1:
            paths = [extract(tables[0], out, settings, **options)]
        else:
            paths = extract_tables(tables, out, settings, **options)
    if quiet:
        return
    from . import terminal

    caches = [inspect_path(path) for path in paths]
    for path, found in zip(paths, caches, strict=True):
        if path.stat().st_mtime > started:  # a cache that was current has been noted already
            terminal.show_cache(found)
    terminal.show_passes(passes_of_extraction([found["record"] for found in caches], outcomes))


@app.command("repair")
def repair_command(
    cache: Annotated[Path, typer.Argument(help="The cache to mend.")],
    table: Annotated[Path, typer.Argument(help="The table that it was made from.")],
    encoder: Annotated[
        str | None, typer.Option(help="Where the encoder is now.", show_default="where the cache says it was")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = EXTRACT.text_column,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of second texts, of a cache of pairs.")
    ] = EXTRACT.text_pair_column,
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = EXTRACT.label_column or "label",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows without text or label, as extract did.")
    ] = EXTRACT.skip_bad_rows,
    device: Device = EXTRACT.device,
    allow_pickled_weights: Pickled = EXTRACT.allow_pickled_weights,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Encode again just what is damaged in a cache."""
    with _reporting(quiet) as report:
        from .stages.repair import repair

        repair(
            cache,
            table,
            encoder=encoder,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            skip_bad_rows=skip_bad_rows,
            device=device,
            allow_pickled_weights=allow_pickled_weights,
            wait=wait,
            report=report,
        )


TestFraction = Annotated[float, typer.Option(help="Share of rows held out for the test.")]
ValidationFraction = Annotated[float, typer.Option(help="Share of the remaining rows held out to choose by.")]
SplitSeed = Annotated[int, typer.Option(help="Fixes which rows are held out.")]
Epochs = Annotated[int, typer.Option(help="Times that every training row is seen.")]
BatchSize = Annotated[int, typer.Option(help="Rows in a batch.")]
Center = Annotated[
    bool, typer.Option("--center/--no-center", help="Let dropout put a column's mean in place of a value, or zero.")
]
Standardize = Annotated[bool, typer.Option("--standardize", help="Divide each column by its spread.")]
Kind = Annotated[HeadKind, typer.Option("--head", help="Linear, or an MLP with one hidden layer.")]
Hidden = Annotated[int, typer.Option(help="Width of an MLP's hidden layer.")]
How = Annotated[Solver, typer.Option(help="sgd: AdamW with dropout; exact: logistic regression to its optimum.")]
Rate = Annotated[Schedule, typer.Option(help="How the learning rate goes on after the warm-up.")]
Warmup = Annotated[float, typer.Option(help="Share of all steps in which the learning rate rises.")]
Patience = Annotated[int, typer.Option(help="Stop after so many epochs without a lower validation loss; 0: never.")]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Fit a temperature on the validation rows.")]
Memory = Annotated[
    str | None, typer.Option(help="Stream features that take more than this, such as 2GiB.", show_default="no bound")
]
LabelTable = Annotated[
    Path | None, typer.Option("--labels", help="A table whose labels take the place of the cache's, by text.")
]
LabelText = Annotated[str, typer.Option("--text-column", help="Column of --labels' texts.")]
LabelPair = Annotated[str | None, typer.Option("--text-pair-column", help="Column of --labels' second texts.")]
LabelColumn = Annotated[str, typer.Option("--label-column", help="Column of --labels' labels.")]
KeepShared = Annotated[bool, typer.Option("--keep-shared", help="Train also on texts that --test or --validation has.")]
TestCache = Annotated[Path | None, typer.Option("--test", help="A cache to test on, instead of held-out rows.")]


@app.command("train-head")
def train_head_command(
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="The cache to train on.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    features: Annotated[str, typer.Option(help="Which of the cache's features to train on.")] = TRAIN.feature,
    test: TestCache = None,
    test_fraction: TestFraction = TRAIN.test_fraction,
    validation: Annotated[Path | None, typer.Option(help="A cache to choose the epoch by, likewise.")] = None,
    validation_fraction: ValidationFraction = TRAIN.validation_fraction,
    folds: Annotated[int, typer.Option(help="Hold out one of so many folds instead; 0: a share.")] = TRAIN.folds,
    fold: Annotated[int, typer.Option(help="Which of the folds to hold out, from 1.")] = TRAIN.fold,
    split_seed: SplitSeed = TRAIN.split_seed,
    labels: LabelTable = None,
    text_column: LabelText = EXTRACT.text_column,
    text_pair_column: LabelPair = EXTRACT.text_pair_column,
    label_column: LabelColumn = EXTRACT.label_column or "label",
    head: Kind = TRAIN.head,
    hidden: Hidden = TRAIN.hidden,
    solver: How = TRAIN.solver,
    l2: Annotated[float, typer.Option(help="The exact solver's penalty: 1 / C of scikit-learn.")] = TRAIN.l2,
    epochs: Epochs = TRAIN.epochs,
    batch_size: BatchSize = TRAIN.batch_size,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = TRAIN.learning_rate,
    schedule: Rate = TRAIN.schedule,
    warmup: Warmup = TRAIN.warmup,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = TRAIN.weight_decay,
    dropout: Annotated[float, typer.Option(help="Share of feature values zeroed in training.")] = TRAIN.dropout,
    center: Center = TRAIN.center,
    standardize: Standardize = TRAIN.standardize,
    class_weight: Annotated[ClassWeight, typer.Option(help="What a row counts in the loss.")] = TRAIN.class_weight,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of a row's target that all classes share.")
    ] = TRAIN.label_smoothing,
    patience: Patience = TRAIN.patience,
    calibrate: Calibrate = TRAIN.calibrate,
    seed: Annotated[int, typer.Option(help="Fixes order and masks.")] = TRAIN.seed,
    device: Device = TRAIN.device,
    memory: Memory = None,
    keep_shared: KeepShared = TRAIN.keep_shared,
    overwrite: Overwrite = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Stage two: train and test a head on a cache."""
    _refuse_idle_rows(ctx, test, validation, labels)
    if folds:
        _refuse_idle(ctx, "is for rows that are held out, and --folds divides them", "validation_fraction")
    _refuse_idle_training(ctx, solver, head)
    settings = TrainSettings(
        feature=features,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        folds=folds,
        fold=fold,
        split_seed=split_seed,
        head=head,
        hidden=hidden,
        solver=solver,
        l2=l2,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        dropout=dropout,
        center=center,
        standardize=standardize,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        patience=patience,
        calibrate=calibrate,
        seed=seed,
        device=device,
        memory=None if memory is None else parse_memory(memory),
        keep_shared=keep_shared,
    )
    with _reporting(quiet) as report:
        from .stages.inspect import inspect_path
        from .stages.train_head import train_head

        given = None if labels is None else Labels(labels, text_column, text_pair_column, label_column)
        run = train_head(
            cache,
            out,
            settings,
            test=test,
            validation=validation,
            labels=given,
            overwrite=overwrite,
            wait=wait,
            report=report,
        )
    if not quiet:
        from . import terminal

        found = inspect_path(run)
        terminal.show_run(found)
        terminal.show_passes(EncoderPasses(**found["encoder_passes"]))


def _values(text: str, kind: Callable[[str], Any], option: str) -> tuple[Any, ...]:
    """The comma-separated values of an option."""
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        such = ", ".join(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else "0,1,2"
        such = "0.1,0.01" if kind is float else such
        raise SettingsError(f"{option} is {text!r}; write values with commas between, such as {such}") from None


@app.command("sweep")
def sweep_command(
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="The cache to train on.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    features: Annotated[str, typer.Option(help="Features to compare, comma-separated.")] = TRAIN.feature,
    lr: Annotated[str | None, typer.Option(help="Learning rates.", show_default=str(TRAIN.learning_rate))] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Decays.", show_default=str(TRAIN.weight_decay))] = None,
    dropout: Annotated[str | None, typer.Option(help="Dropout rates.", show_default=str(TRAIN.dropout))] = None,
    label_smoothing: Annotated[
        str | None, typer.Option(help="Shares of a target.", show_default=str(TRAIN.label_smoothing))
    ] = None,
    class_weight: Annotated[str, typer.Option(help="none, balanced, or both.")] = TRAIN.class_weight.value,
    l2: Annotated[str | None, typer.Option(help="The exact solver's penalties.", show_default=str(TRAIN.l2))] = None,
    seed: Annotated[str, typer.Option(help="Seeds of order and masks.")] = str(TRAIN.seed),
    folds: Annotated[int, typer.Option(help="Rank over so many folds; 0: on a share of the rows.")] = TRAIN.folds,
    rank_by: Annotated[Ranking, typer.Option(help="By what the settings are ranked.")] = SWEEP.rank_by,
    test: TestCache = None,
    test_fraction: TestFraction = TRAIN.test_fraction,
    validation: Annotated[Path | None, typer.Option(help="A cache to rank by.")] = None,
    validation_fraction: ValidationFraction = TRAIN.validation_fraction,
    split_seed: SplitSeed = TRAIN.split_seed,
    labels: LabelTable = None,
    text_column: LabelText = EXTRACT.text_column,
    text_pair_column: LabelPair = EXTRACT.text_pair_column,
    label_column: LabelColumn = EXTRACT.label_column or "label",
    head: Kind = TRAIN.head,
    hidden: Hidden = TRAIN.hidden,
    solver: How = TRAIN.solver,
    epochs: Epochs = TRAIN.epochs,
    batch_size: BatchSize = TRAIN.batch_size,
    schedule: Rate = TRAIN.schedule,
    warmup: Warmup = TRAIN.warmup,
    center: Center = TRAIN.center,
    standardize: Standardize = TRAIN.standardize,
    patience: Patience = TRAIN.patience,
    calibrate: Calibrate = TRAIN.calibrate,
    device: Device = TRAIN.device,
    memory: Memory = None,
    keep_shared: KeepShared = TRAIN.keep_shared,
    overwrite: Overwrite = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Train the product of all values, times seeds and folds; rank them; test the winner."""
    _refuse_idle_rows(ctx, test, validation, labels)
    _refuse_idle_training(ctx, solver, head)
    given: list[tuple[str, str | None, Callable[[str], Any], str]] = [
        ("feature", features, str, "--features"),
        ("learning_rate", lr, float, "--lr"),
        ("weight_decay", weight_decay, float, "--weight-decay"),
        ("dropout", dropout, float, "--dropout"),
        ("label_smoothing", label_smoothing, float, "--label-smoothing"),
        ("class_weight", class_weight, ClassWeight, "--class-weight"),
        ("l2", l2, float, "--l2"),
    ]
    values = {name: _values(text, kind, option) for name, text, kind, option in given if text is not None}
    settings = SweepSettings(
        base=TrainSettings(
            feature=values["feature"][0],
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            folds=folds,
            split_seed=split_seed,
            head=head,
            hidden=hidden,
            solver=solver,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            warmup=warmup,
            center=center,
            standardize=standardize,
            patience=patience,
            calibrate=calibrate,
            device=device,
            memory=None if memory is None else parse_memory(memory),
            keep_shared=keep_shared,
        ),
        values=values,
        seeds=_values(seed, int, "--seed"),
        rank_by=rank_by,
    )
    with _reporting(quiet) as report:
        from .stages.inspect import inspect_path
        from .stages.sweep import sweep

        relabelled = None if labels is None else Labels(labels, text_column, text_pair_column, label_column)
        folder = sweep(
            cache,
            out,
            settings,
            test=test,
            validation=validation,
            labels=relabelled,
            overwrite=overwrite,
            wait=wait,
            report=report,
        )
    if not quiet:
        from . import terminal

        found = inspect_path(folder)
        terminal.show_sweep(found)
        terminal.show_run(inspect_path(folder / "winner"))
        terminal.show_passes(EncoderPasses(**found["encoder_passes"]))


@app.command("predict")
def predict_command(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.", show_default=False)] = None,
    input_table: Annotated[Path | None, typer.Option("--input", help="A table of texts, instead of TEXTS.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for --input's results: .csv, .tsv, .jsonl, .parquet.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of --input's texts.")] = EXTRACT.text_column,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of --input's second texts, for a head that reads pairs.")
    ] = EXTRACT.text_pair_column,
    encoder: Annotated[
        str | None, typer.Option(help="Where the encoder is now.", show_default="where the run says it was")
    ] = None,
    device: Device = EXTRACT.device,
    allow_pickled_weights: Pickled = EXTRACT.allow_pickled_weights,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Classify texts, or a table of them, with a run."""
    if bool(texts) == (input_table is not None) or (input_table is None) != (out is None):
        raise SettingsError("give either texts, or a table with --input and a file for its results with --out")
    if input_table is None:
        _refuse_idle(ctx, "is for a table; give that with --input", *("text_column", "text_pair_column", "overwrite"))
    options: dict[str, Any] = {
        "encoder": encoder,
        "device": device,
        "allow_pickled_weights": allow_pickled_weights,
    }
    with _reporting(quiet) as report:
        from .stages.predict import predict, predict_table

        if input_table is not None and out is not None:
            options |= {"text_column": text_column, "text_pair_column": text_pair_column, "overwrite": overwrite}
            written = predict_table(run, input_table, out, report=report, **options)
        else:
            found = predict(run, texts or [], report=report, **options)
    if input_table is None:
        from . import terminal

        terminal.show_predictions(found.texts, found.labels, found.label_names, found.probabilities)
    elif not quiet:
        from . import terminal

        terminal.console.print(str(written), markup=False)


@app.command("speedup")
def speedup_command(
    ctx: typer.Context,
    table: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines or Parquet file, or a folder of one kind.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    encoder: Annotated[str, typer.Option(help="Hub id, or a folder with a model's files.")] = SPEEDUP.encoder,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = SPEEDUP.revision,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = SPEEDUP.text_column,
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = SPEEDUP.label_column,
    max_length: Annotated[
        int, typer.Option(help="Tokens at which a text is cut, and to which the program pads it.")
    ] = SPEEDUP.max_length,
    epochs: Annotated[int, typer.Option(help="Epochs of an experiment.")] = SPEEDUP.epochs,
    experiments: Annotated[int, typer.Option(help="Experiments to add up.")] = SPEEDUP.experiments,
    budget: Annotated[
        str, typer.Option(help="Time for all measurements, such as 120s or 10min.")
    ] = f"{SPEEDUP.budget:g}s",
    repeats: Annotated[int, typer.Option(help="How often each rung is timed, where it fits.")] = SPEEDUP.repeats,
    seed: Annotated[str, typer.Option(help="Seeds of the heads whose accuracy is compared.")] = ",".join(
        map(str, SPEEDUP.seeds)
    ),
    quality: Annotated[
        bool, typer.Option("--quality/--no-quality", help="Compare accuracy too; without, the rungs get its time.")
    ] = SPEEDUP.quality,
    device: Device = SPEEDUP.device,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows without text or label.")
    ] = SPEEDUP.skip_bad_rows,
    allow_pickled_weights: Pickled = SPEEDUP.allow_pickled_weights,
    overwrite: Overwrite = False,
    wait: Wait = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the two stages save on this machine, beside a program that encodes in every epoch."""
    if not quality:
        _refuse_idle(ctx, "is of the heads whose accuracy is compared, and --no-quality compares none", "seed")
    settings = SpeedupSettings(
        encoder=encoder,
        revision=revision,
        text_column=text_column,
        label_column=label_column,
        max_length=max_length,
        epochs=epochs,
        experiments=experiments,
        budget=parse_duration(budget),
        repeats=repeats,
        seeds=_values(seed, int, "--seed"),
        quality=quality,
        device=device,
        skip_bad_rows=skip_bad_rows,
        allow_pickled_weights=allow_pickled_weights,
    )
    with _reporting(quiet) as report:
        from .stages.inspect import inspect_path
        from .stages.speedup import speedup

        folder = speedup(table, out, settings, overwrite=overwrite, wait=wait, report=report)
    if not quiet:
        from . import terminal

        terminal.show_speedup(inspect_path(folder))


@app.command("verify")
def verify_command(
    ctx: typer.Context,
    cache: Annotated[Path, typer.Argument(help="A cache.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="Encode a sample of the rows again with this: hub id, or a folder with a model's files."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="The table that it was made from.", show_default="where the cache says it was")
    ] = None,
    sample: Annotated[int, typer.Option(help="Rows to encode again, at most.", min=1)] = VERIFY_SAMPLE,
    seed: Annotated[int | None, typer.Option(help="Fixes which.", show_default="others each time")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = EXTRACT.text_column,
    text_pair_column: Annotated[str | None, typer.Option(help="Column of second texts.")] = EXTRACT.text_pair_column,
    device: Device = EXTRACT.device,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="As it was when the cache was made.")
    ] = EXTRACT.skip_bad_rows,
    allow_pickled_weights: Pickled = EXTRACT.allow_pickled_weights,
    quiet: Quiet = False,
) -> None:
    """Check every byte of a cache; with --encoder, encode a sample of its rows again and compare."""
    if encoder is None:
        encoding = ("table", "sample", "seed", "text_column", "text_pair_column", "device", "skip_bad_rows")
        _refuse_idle(ctx, "is for encoding rows again; give the --encoder, too", *encoding, "allow_pickled_weights")
    settings = ExtractSettings(
        text_column=text_column,
        text_pair_column=text_pair_column,
        device=device,
        skip_bad_rows=skip_bad_rows,
        allow_pickled_weights=allow_pickled_weights,
    )
    with _reporting(quiet) as report:
        from .stages.verify import verify

        found = verify(cache, encoder=encoder, table=table, settings=settings, sample=sample, seed=seed, report=report)
    for finding in found.findings:
        print(plain(f"{found.path}: {finding.where}: {finding.what}"))
    if any(finding.damage for finding in found.findings):
        raise DamagedError(
            f"{found.path} is damaged; headstart repair encodes damaged blocks again, extract --overwrite all of it"
        )
    if found.findings:
        raise DamagedError(
            f"{found.path} is whole, but holds what extract does not write; extract it again with --overwrite"
        )
    if not quiet:
        from . import terminal

        terminal.show_verified(found)


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A cache, or the folder of a run, a sweep or a speedup report.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Show what a cache, a run, a sweep or a speedup report holds."""
    from . import terminal
    from .stages.inspect import inspect_path

    found = inspect_path(path)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    shows = {"cache": terminal.show_cache, "sweep": terminal.show_sweep, "speedup": terminal.show_speedup}
    try:
        shows.get(found["kind"], terminal.show_run)(found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # a file of someone else's making
        raise DamagedError(
            f"{path}: what it records is not what headstart writes ({type(error).__name__}: {error}); --json prints it"
        ) from error


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 should not end a run
    app(prog_name="headstart")
