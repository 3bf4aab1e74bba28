"""Whether what a run is told is read by what was chosen."""

from __future__ import annotations

from collections.abc import Collection

from fedexp import readers
from fedexp.choices import (
    Choice,
    optimizer_key,
    strategy_keys,
    strategy_names,
)
from fedexp.config import Config
from fedexp.datasets.own_files import found
from fedexp.readers import dataset_kind


def check_read(config: Config, given: Collection[str] = (), engine: str = "") -> None:
    """Find out whether all settings that differ from their default, or are ``given``, are read.

    Args:
        config: of a run.
        given: keys that are judged though they have their default.
        engine: that runs the clients; by default the one of ``config``.

    Raises:
        ValueError: no strategy, local optimizer, partitioner, dataset or engine of ``config``
            reads one of them.
    """
    keys = strategy_keys(config)
    _check_one_source(config, given)
    _check_local_work(config, given)
    own = config.local_optimizer
    if all(Choice.of(key).optimizer for key in keys) and (
        "local-optimizer" in given or own != "sgd"
    ):
        raise ValueError(
            f"Config(local-optimizer={own!r}): every strategy names its own behind a +. "
            "Leave one of the two out."
        )
    chosen: dict[str, list[str]] = {
        "strategy": strategy_names(config),
        "local optimizer": [optimizer_key(config, key) for key in keys],
        **_data_choices(config),
        "engine": [engine or ("serial" if config.engine == "serial" else "ray")],
    }
    readers.check_has_reader(config, chosen, given)


def check_read_by_partition(config: Config, given: Collection[str]) -> None:
    """As ``check_read``, for a command that splits a dataset and does no more."""
    _check_one_source(config, given)
    readers.check_has_reader(config, _data_choices(config), given)


def _data_choices(config: Config) -> dict[str, list[str]]:
    auto = "natural" if config.client_from else "dirichlet"  # so far as it shows without the data
    name = auto if config.partitioner == "auto" else config.partitioner
    kind = found(config.data)[0] if config.data else dataset_kind(config.dataset)
    return {"partitioner": [name], "dataset": [kind]}


def _check_one_source(config: Config, given: Collection[str]) -> None:
    if config.data and ("dataset" in given or config.dataset != Config.keys()["dataset"].default):
        raise ValueError(
            f"Config(dataset={config.dataset!r}): data={config.data!r} names the data already. "
            "Leave one of the two out."
        )


def _check_local_work(config: Config, given: Collection[str]) -> None:
    """Raise if clients that are told a number of epochs are told a number of steps as well."""
    if not config.local_epochs:
        return
    steps, default = config.local_steps, Config.keys()["local-steps"].default
    if "local-steps" in given or steps != default:
        raise ValueError(
            f"Config(local-steps={steps}): local-epochs={config.local_epochs:g} says how many "
            "steps a client takes. Leave one of the two out."
        )
