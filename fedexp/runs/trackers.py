"""The rows of a run, also written where TensorBoard or MLflow show them."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fedexp.config import cut
from fedexp.extras import need
from fedexp.runs.reading import MetricsRow
from fedexp.runs.series import as_number, settings_text
from fedexp.specs import split_list

try:
    import fcntl
except ModuleNotFoundError:  # Windows: the second of two processes may hear of an error
    fcntl = None  # type: ignore[assignment]

_warn = logging.getLogger("flwr").warning


class Tracker(Protocol):
    """Takes a unit's rows, as they are written to ``metrics.jsonl``."""

    def begin(self, unit: Mapping[str, Any], folder: Path, first: int = 1) -> None:
        """A unit begins, or goes on with round ``first``: what ``unit.json`` says, its folder."""
        ...

    def row(self, row: MetricsRow) -> None:
        """A round has ended."""
        ...

    def end(self, summary: Mapping[str, Any]) -> None:
        """The unit has ended."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the unit's folder."""

    def begin(self, unit: Mapping[str, Any], folder: Path, first: int = 1) -> None:
        """See ``Tracker``; events of rounds that are run again are forgotten."""
        from torch.utils.tensorboard import SummaryWriter

        own = folder / "tensorboard"
        self._writer = SummaryWriter(str(own), purge_step=first if first > 1 else None)

    def row(self, row: MetricsRow) -> None:
        """A scalar for every number, at the step of the round."""
        for key, value in _numbers(row).items():
            self._writer.add_scalar(key, value, row["round"])
        self._writer.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        self._writer.close()


class MLflow:
    """A run of MLflow for each unit, in ``mlruns/mlflow.db`` of the run folder.

    Args:
        folder: of the run; its name is the experiment's. Where ``MLFLOW_TRACKING_URI`` is set the
            runs go there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def begin(self, unit: Mapping[str, Any], folder: Path, first: int = 1) -> None:
        """See ``Tracker``; a unit that goes on is found again by the tag ``unit``."""
        with _alone(self._folder):  # no two processes make the tables, or the experiment
            self._client = self._connected()
            experiment = self._experiment()
        own = folder.absolute().relative_to(self._folder).as_posix()
        found = self._client.search_runs([experiment], f"tags.unit = '{own}'") if first > 1 else []
        if found:
            self._run = found[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            return
        run = self._client.create_run(experiment, run_name=own, tags={"unit": own})
        self._run = run.info.run_id
        for key, value in unit.items():
            text = settings_text(value) if isinstance(value, Mapping) else str(value)
            self._client.log_param(self._run, key, text)

    def row(self, row: MetricsRow) -> None:
        """A metric for every number, at the step of the round."""
        self._log(_numbers(row), row["round"])

    def end(self, summary: Mapping[str, Any]) -> None:
        """The numbers of the summary as metrics ``summary/...``; failed if it did not finish."""
        self._log({f"summary/{key}": value for key, value in _numbers(summary).items()}, 0)
        ended = summary.get("ended", "finished")
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(ended, "FINISHED")
        self._client.set_terminated(self._run, status)

    def _connected(self) -> Any:
        from mlflow import MlflowClient

        store = self._folder / "mlruns"
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            return MlflowClient(tracking_uri=uri)
        store.mkdir(exist_ok=True)
        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # each table of a new file
        return MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")

    def _experiment(self) -> Any:
        name = self._folder.name
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        if "MLFLOW_TRACKING_URI" in os.environ:
            return self._client.create_experiment(name)
        store = self._folder / "mlruns"
        return self._client.create_experiment(name, artifact_location=store.as_uri())

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Trackers:
    """Several trackers as one; one that fails is heard of once and no more used.

    Args:
        trackers: by name.
        warn: takes the line about one that failed.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], warn: Callable[[str], None] = _warn
    ) -> None:
        self._trackers = dict(trackers)
        self._warn = warn

    def begin(self, unit: Mapping[str, Any], folder: Path, first: int = 1) -> None:
        """See ``Tracker``."""
        self._each(lambda tracker: tracker.begin(unit, folder, first))

    def row(self, row: MetricsRow) -> None:
        """See ``Tracker``."""
        self._each(lambda tracker: tracker.row(row))

    def end(self, summary: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        self._each(lambda tracker: tracker.end(summary))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                del self._trackers[name]
                said = " ".join(str(error).split())[:300]
                self._warn(f"--log {name}: {type(error).__name__}: {said}. The run goes on.")


# Modules by name, which is the extra's too. MLflow alone brings nothing to open a local file with.
_KNOWN = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def trackers_of(log: str, folder: Path, warn: Callable[[str], None] = _warn) -> Trackers:
    """The trackers that ``--log`` names.

    Args:
        log: names, by comma.
        folder: of the run.
        warn: takes a line about a tracker that fails.

    Raises:
        ValueError: one is unknown.
        ModuleNotFoundError: one is not installed.
    """
    names = list(dict.fromkeys(split_list(log)))
    for name in names:
        if name not in _KNOWN:
            raise ValueError(
                f"Config(log={cut(log)}): unknown {cut(name)}. Known: {', '.join(_KNOWN)}."
            )
        for module in _KNOWN[name]:
            need(module, name)
    return Trackers(
        {name: MLflow(folder) if name == "mlflow" else TensorBoard() for name in names}, warn
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    found = {key: as_number(value) for key, value in row.items() if key not in ("round", "seed")}
    return {key: value for key, value in found.items() if value == value}


def _name(key: str) -> str:
    """``key`` without what MLflow takes for no part of a name."""
    return re.sub(r"[^\w\-. :/]", "_", key)
