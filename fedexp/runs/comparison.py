"""Several runs from Python, all else alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from typing import Any

from fedexp import verdict
from fedexp.choices import strategy_keys
from fedexp.config import Config, cut
from fedexp.extras import need
from fedexp.logs import level
from fedexp.runs import folder as folders
from fedexp.runs.command import label_of
from fedexp.runs.federation import Federation
from fedexp.runs.given import given
from fedexp.runs.job import UnitOutcome
from fedexp.runs.page import report
from fedexp.runs.reading import MetricsRow, UnitResult
from fedexp.runs.results import Result, Results, load_runs
from fedexp.runs.resuming import check_units
from fedexp.runs.said import check_calls, check_folder, maker_of, name_of, tell
from fedexp.runs.study import Study


def compare(
    strategies: Mapping[str, Any] | Iterable[Any] | str,
    *,
    seeds: Iterable[int] | str | None = None,
    on_round: Callable[[str, int, MetricsRow], Any] = lambda *_: None,
    stop: Callable[[MetricsRow], bool] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **parts: Any,
) -> Results:
    """Run several strategies with several seeds, all else alike.

    Args:
        strategies: by what they are called, a list of them, or text as ``--strategy`` takes it;
            each as in ``Simulation``.
        seeds: each strategy runs once with each; by default ``seed`` alone.
        on_round: is called with a strategy's name, a seed and the row of a round.
        stop: is asked after every round whether its run is to end there.
        out: folder to write to; nothing is written without.
        resume: go on with what is in ``out``.
        **parts: those of ``Simulation``; with ``sweep={"learning_rate": [0.1, 0.3]}`` and
            ``select="best-accuracy"`` each strategy is tuned.

    Raises:
        ValueError: something of this cannot be trained; nothing has run then.
        RuntimeError: no round of any run succeeded.

    Warns:
        RuntimeWarning: something went wrong in a run.

    Example:
        >>> import fedexp
        >>> found = fedexp.compare(
        ...     "fedavg, fedexp", seeds=[0, 1], num_server_rounds=2, num_clients=10
        ... )
        >>> len(found), len(found["fedexp"])
        (4, 2)
    """
    check_calls(on_round=on_round, stop=on_round if stop is None else stop)
    named = _named(strategies)
    texts = {name: x if isinstance(x, str) else "fedavg" for name, x in named.items()}
    rules = {name: x for name, x in named.items() if not isinstance(x, str)}
    text = ",".join(dict.fromkeys(texts.values()))
    several = {"strategy": text, "seeds": _listed(seeds, parts), "out": out}
    config, own = given("compare", {**parts, **several}, rules.values())
    check_folder("compare", config, resume)
    study = Study(config, texts, rules, own, resume=resume)
    with ExitStack() as held, level(WARNING):
        study.check()
        held.callback(study.close)
        if out:
            study.root = _study_folder(study, held)
        outcomes = study.run(lambda unit, row: on_round(unit.label, unit.config.seed, row), stop)
        if study.root:
            report([study.root])
    results = _results(study, outcomes)
    problems = verdict.problems({label_of(x.unit): x.summary for x in outcomes})
    tell("; ".join(problems), [row for run in results for row in run.metrics])
    return results


def _listed(seeds: Iterable[int] | str | None, parts: Mapping[str, Any]) -> Any:
    """The seeds, in text; None for that of ``parts``."""
    if seeds is None or isinstance(seeds, str):
        return seeds
    if isinstance(seeds, int):
        raise ValueError(f"compare(seeds={seeds}): must be several. Give range({seeds}) or [0, 1].")
    if not isinstance(seeds, Iterable):
        raise ValueError(f"compare(seeds={cut(seeds)}): must be several. Give [0, 1].")
    if "seed" in parts:
        raise ValueError("compare(seed): seeds are given too. Leave one out.")
    return ",".join(map(str, seeds))


def _study_folder(study: Study, held: ExitStack) -> Path:
    need("matplotlib", "simulation")
    root, config = Path(study.config.out), study.config
    if study.resume and (root / "config.toml").exists():
        held.enter_context(folders.reopened(root))
        check_units(config, study.strategies, root, lambda own: Federation(own, study.own))
        folders.show_partition(root, Federation(config, study.own))
        return root
    held.enter_context(folders.claimed(config))
    names = study.own.names() | {label: name_of(x) for label, x in study.objects.items()}
    folders.begin(config, root, Federation(config, study.own), names)
    return root


def _results(study: Study, outcomes: list[UnitOutcome]) -> Results:
    if not study.root:
        return Results(tuple(_in_memory(study, outcome) for outcome in outcomes), study.config)
    units = {study.root / outcome.unit.folder: outcome.unit for outcome in outcomes}
    found = load_runs(study.root)
    runs = [
        replace(run, make=maker_of(Federation(units[run.folder].config, study.own)))
        for run in found
        if run.folder in units
    ]
    return replace(found, runs=tuple(runs))


def _in_memory(study: Study, outcome: UnitOutcome) -> Result:
    unit, federation = outcome.unit, Federation(outcome.unit.config, study.own)
    about = unit.about() | federation.about()
    settings, last, mean = about["settings"], *outcome.models
    found = UnitResult(
        unit.label,
        unit.config.seed,
        settings,
        tuple(outcome.rows),
        outcome.summary,
        tuple(outcome.clients),
        None,
        about,
    )
    return Result(found, unit.config, maker_of(federation), (last, mean))


def _named(strategies: Mapping[str, Any] | Iterable[Any] | str) -> dict[str, Any]:
    """Strategies by what they are called.

    Raises:
        ValueError: there are none, or two are called the same.
    """
    if isinstance(strategies, str):
        return {key: key for key in strategy_keys(Config.of({"strategy": strategies}))}
    if isinstance(strategies, Mapping):
        named = dict(strategies)
    else:
        listed = list(strategies)
        named = {x if isinstance(x, str) else name_of(x): x for x in listed}
        if len(named) < len(listed):
            raise ValueError("compare(strategies): two are called the same. Give a dict of names.")
    for name, value in named.items():
        if isinstance(value, str) and len(strategy_keys(Config.of({"strategy": value}))) > 1:
            raise ValueError(f"compare({name!r}: {value!r}): is several. Give each a name.")
    if not named:
        raise ValueError("compare(strategies): there are none. Name at least one.")
    return named
