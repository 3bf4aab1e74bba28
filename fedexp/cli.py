"""The console script ``fedexp``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedexp.config import Config
from fedexp.extras import need

if TYPE_CHECKING:
    from fedexp.simulation.grid import LocalGrid


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}. See `{self.prog} --help`.")


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2: the user's input was wrong."""
    print(f"fedexp: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fedexp COMMAND --flags``."""
    parser = _Parser(prog="fedexp", description="Federated learning with an adaptive server step.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    _simulate_flags(commands.add_parser("simulate", help="run strategies on virtual clients"))
    _config_flags(commands.add_parser("partition", help="see how a dataset is split"))
    values = vars(parser.parse_args(argv))
    {"simulate": simulate, "partition": partition}[values.pop("command")](values)


def _simulate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --out")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with an interrupted run")
    _config_flags(parser)


def _config_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per configuration key."""
    parser.allow_abbrev = False
    parser.add_argument("--config", metavar="FILE", help="TOML file with the keys of these flags")
    for key, field in Config.keys().items():
        default = "" if field.default == "" else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        parser.add_argument(f"--{key}", dest=key, metavar="VALUE", help=text, **alone)


def config_of(values: dict[str, Any]) -> Config:
    """Defaults, overridden by the file, overridden by the flags."""
    given = {key: value for key, value in values.items() if value is not None}
    path = given.pop("config", None)
    return Config.of({**(Config.read(path) if path else {}), **given})


def simulate(values: dict[str, Any]) -> None:
    """Run, show progress, print the table and draw the picture."""
    try:
        config, folder, grid = _prepared(values)
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"out: {error}. Name a folder that can be made.")
    from fedexp.app import strategy_keys
    from fedexp.console import Progress, table
    from fedexp.logs import level
    from fedexp.report import plot_curves
    from fedexp.simulation import run

    keys = strategy_keys(config)
    try:
        with grid, level(WARNING), Progress(keys, config.num_server_rounds) as progress:
            summaries = run.simulate(config, folder, grid, progress.advance)
    except KeyboardInterrupt:
        print(f"Interrupted. Go on with: fedexp simulate --resume {folder}", file=sys.stderr)
        raise SystemExit(130) from None
    picture = plot_curves(folder, keys, config.target_accuracy, config.average)
    table(summaries, config.target_accuracy)
    print(f"Run folder: {folder}\nPicture: {picture}")


def partition(values: dict[str, Any]) -> None:
    """Print the sizes and label counts of the clients, and draw them."""
    try:
        config = config_of(values)
        from fedexp import app

        data, parts = app.dataset_of(config), app.partition_of(config)
        if not data.num_classes:
            raise ValueError(f"Config(dataset={config.dataset!r}): it has no classes to show.")
        need("matplotlib", "simulation")
        folder = Path(config.out or ".")
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"out: {error}. Name a folder that can be made.")
    from fedexp.console import partition_table
    from fedexp.datasets import heterogeneity, label_counts, plot

    labels = data.train[1].numpy()
    partition_table(label_counts(labels, parts))
    print(
        f"{len(parts):,} clients, {parts.sizes.min()} to {parts.sizes.max()} examples, "
        f"heterogeneity {heterogeneity(labels, parts):.3f} (mean total-variation distance to all)"
    )
    plot(labels, parts, folder / "partition.png")
    print(f"Picture: {folder / 'partition.png'}")


def _prepared(values: dict[str, Any]) -> tuple[Config, Path, LocalGrid]:
    """All that can be wrong with what the user asked for is found here, before a round is run."""
    overwrite, resume = values.pop("overwrite"), values.pop("resume")
    given = [f"--{key}" for key, value in values.items() if value is not None]
    if resume and (given or overwrite):
        raise ValueError(
            f"--resume takes no other flag, {(*given, '--overwrite')[0]} was given: the run's "
            "config.toml holds them. Start a new run to change them."
        )
    config = Config.of(Config.read(Path(resume) / "config.toml")) if resume else config_of(values)
    from fedexp import app  # torch and Flower take seconds; a wrong flag should not
    from fedexp.simulation import run

    for key in app.strategy_keys(config):
        app.strategy_of(config, key, 1)
    app.partition_of(config)
    app.model_of(config)
    need("matplotlib", "simulation")
    folder = Path(resume) if resume else run.folder_of(config, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    run.check_engine(config)
    grid = run.grid_of(config)
    if not resume:
        run.begin(config, folder)
    return config, folder, grid
