"""What an interrupted run has left, looked at before the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from fedexp.choices import schedule_of, strategy_keys
from fedexp.config import Config
from fedexp.files import save_json, save_text
from fedexp.runs.checkpoint import NAMES, Checkpoint
from fedexp.runs.federation import Federation, Own
from fedexp.runs.fingerprint import Fingerprint, check_same, fingerprint_of, without_paths
from fedexp.runs.folder import FILES_OF_A_UNIT, check_files, locked
from fedexp.runs.json_files import environment_in
from fedexp.runs.plan import Strategies, Unit, first_units, points_of, reporting_units
from fedexp.runs.reading import check_others
from fedexp.runs.recorded import MODELS, rows_until, say_nothing, summary_of, usable


def config_in(folder: Path) -> Config:
    """The configuration of the run in ``folder``.

    Raises:
        ValueError: it cannot be read, or is none that a run wrote.
    """
    values = Config.read(folder / "config.toml")
    if "strategy" not in values:  # an empty file would be a run with the default of every key
        raise ValueError(f"{folder / 'config.toml'}: names no strategy. Name a run's folder.")
    return Config.of(values)


def check_resumable(
    config: Config, folder: Path, federation_of: Callable[[Config], Federation] = Federation
) -> None:
    """Find out whether the run in ``folder`` can go on to the same bits.

    Args:
        config: of the run.
        folder: of the run.
        federation_of: the clients of a run of one strategy.

    Raises:
        ValueError: its configuration was edited, it was made of objects that no file holds, or a
            file is damaged or missing.
    """
    _check_unedited(config, folder)
    check_units(config, _strategies(config), folder, federation_of)


def check_units(
    config: Config,
    strategies: Strategies,
    folder: Path,
    federation_of: Callable[[Config], Federation],
) -> None:
    """As ``check_unit``, for all that ``config`` asks for, and of what is around them."""
    units = first_units(config, strategies)
    selected = reporting_units(config, strategies) if config.select else []
    check_around(folder, [*units, *selected])
    for unit in units:
        check_unit(unit, folder / unit.folder, federation_of(unit.config))
    swept = {key for point in points_of(config) for key in point}
    for unit in selected:
        check_unit(unit, folder / unit.folder, federation_of(unit.config), free=swept)


def check_around(folder: Path, units: Iterable[Unit]) -> None:
    """Find out now what else would keep the run in ``folder`` from writing its page at the end.

    Raises:
        ValueError: a file that ``units`` do not write is damaged, or a folder is in its place.
    """
    check_files(folder)
    check_others(folder, [folder / unit.folder for unit in units])


def check_unit(
    unit: Unit, folder: Path, federation: Federation, free: Collection[str] = ()
) -> None:
    """Find out whether a unit can go on from what is in its folder.

    Args:
        unit: which.
        folder: of the unit.
        federation: its clients.
        free: keys whose values the folder alone knows.

    Raises:
        ValueError: it cannot.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is no folder. Remove it to run it again.")
    check_files(folder, (name for name in FILES_OF_A_UNIT if name not in NAMES))
    saved = usable(folder, warn=say_nothing) if folder.exists() else None
    if saved:
        _check_began(unit, folder / NAMES[0], federation, saved.fingerprint, free)
    if (folder / "summary.json").exists():
        _check_finished(folder, saved)


def _check_began(
    unit: Unit, path: Path, federation: Federation, began: Fingerprint, free: Collection[str]
) -> None:
    own = fingerprint_of(unit.config, federation)
    values = {key: x for key, x in own["config"].items() if key in free}
    then = {**began, "config": {**began["config"], **values}} if began else began
    check_same(then, own, path)
    if began:
        rounds = {"num-server-rounds": began["config"]["num-server-rounds"]}
        before = Config.of({**unit.config.values(), **rounds})
        _check_schedules(before, unit.config, federation.own)


def extend(folder: Path, num_rounds: int) -> Config:
    """Let the run in ``folder`` have ``num_rounds`` rounds; it goes on when it is resumed.

    What it comes to is what a run of so many rounds comes to, to the bit. What a sweep selected
    stays selected.

    Raises:
        ValueError: it has as many already, it cannot be resumed, or more rounds would not lead to
            what a run of so many comes to.
    """
    config = config_in(folder)
    with locked(folder):
        check_resumable(config, folder)
        if not _is_more(config, folder, num_rounds):
            return config
        extended = Config.of({**config.values(), "num-server-rounds": num_rounds})
        for own in _unit_folders(config, folder):
            _check_extensible(own, config, f"--rounds {num_rounds}: {own}")
        _check_schedules(config, extended)
        _check_selected(config, folder, num_rounds)
        if environment := environment_in(folder):
            # This first: cut short, the run is one whose configuration was edited, which says so.
            known = {**environment, "config": extended.values()}
            save_json(folder / "environment.json", known)
        save_text(folder / "config.toml", extended.to_toml())
    return extended


def _is_more(config: Config, folder: Path, num_rounds: int) -> bool:
    """Whether the run is to get longer; as many rounds as it has let it go on to its end."""
    has = config.num_server_rounds
    is_done = all(map(summary_of, _reporting(config, folder)))
    if num_rounds < has or (num_rounds == has and is_done):
        raise ValueError(
            f"--rounds {num_rounds}: the run in {str(folder)!r} has {has} already. Name more."
        )
    return num_rounds > has


def _check_extensible(own: Path, config: Config, owner: str) -> None:
    """A unit that has not ended, or that has all its rounds."""
    summary = summary_of(own)
    if not summary:
        return
    count = summary["num-rounds"]
    if count != config.num_server_rounds:
        early = summary["problem"] or summary.get("stopped")
        why = early or f"was stopped in round {count} of {config.num_server_rounds}"
        raise ValueError(f"{owner}: {why.rstrip('.')}. Start a new run for more rounds.")


def _check_schedules(config: Config, extended: Config, own: Own | None = None) -> None:
    """The learning rates of the rounds so far may depend on how many there are."""
    own = own or Own()
    if config == extended or not (config.scheduler or own.scheduler):
        return
    for key in strategy_keys(config):
        rates = [_rates(x, key, config.num_server_rounds, own) for x in (config, extended)]
        for a, b in zip(*rates, strict=True):
            if a != b:
                raise ValueError(
                    f"--rounds {extended.num_server_rounds}: with "
                    f"scheduler={config.scheduler or 'a function'!r} "
                    "the learning rate of every round depends on how many there are. "
                    "Start a new run for more rounds."
                )


def _rates(config: Config, key: str, last: int, own: Own) -> list[float]:
    schedule = schedule_of(config, key, own.scheduler, own.optimizer)
    return [schedule(i) for i in range(1, last + 1)] if schedule else []


def _check_selected(config: Config, folder: Path, num_rounds: int) -> None:
    tuning = first_units(config, _strategies(config)) if config.select else []
    if not all(summary_of(folder / unit.folder) for unit in tuning):
        raise ValueError(
            f"--rounds {num_rounds}: the run in {str(folder)!r} has not selected yet. "
            "Resume it without --rounds first."
        )


def _strategies(config: Config) -> dict[str, str]:
    return {key: key for key in strategy_keys(config)}


def _reporting(config: Config, folder: Path) -> list[Path]:
    return [folder / unit.folder for unit in reporting_units(config, _strategies(config))]


def _unit_folders(config: Config, folder: Path) -> list[Path]:
    tuning = [folder / unit.folder for unit in first_units(config, _strategies(config))]
    return sorted({*tuning, *_reporting(config, folder)})


def _check_unedited(config: Config, folder: Path) -> None:
    environment = environment_in(folder)
    began = without_paths(environment.get("config", {}))
    if objects := environment.get("objects", {}):
        name = next(iter(objects))
        raise ValueError(
            f"{folder}: was run from Python with an object as {name}, which no file holds. Run the "
            "program again, with resume=True."
        )
    now = without_paths(config.values())
    if changed := [key for key in now if key in began and began[key] != now[key]]:
        key = changed[0]
        raise ValueError(
            f"{folder / 'config.toml'}: {key} is {now[key]!r}, but the run began with "
            f"{began[key]!r}. Set it back, or start a new run."
        )


def _check_finished(folder: Path, saved: Checkpoint | None) -> None:
    """What cannot be had again from a checkpoint must be there."""
    if saved:
        return
    again = f"Remove {folder} to run it again."
    summary = summary_of(folder)
    if not summary:
        raise ValueError(f"{folder / 'summary.json'}: is damaged. {again}")
    if missing := [name for name in MODELS if not (folder / name).is_file()]:
        raise ValueError(f"{folder / missing[0]}: is missing. {again}")
    rows_until(folder, summary["num-rounds"])
