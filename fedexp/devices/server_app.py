"""The ServerApp of `fedexp run`: a run's folder as a simulation leaves it, with devices as clients.

It reads the configuration from the folder that ``fedexp run`` has made, which is on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from logging import INFO
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedexp.config import Config
from fedexp.devices.data_description import description_of
from fedexp.devices.device_grid import DeviceGrid
from fedexp.runs.command import strategies_of
from fedexp.runs.federation import Federation
from fedexp.runs.plan import first_units
from fedexp.runs.unit_run import UnitRun
from fedexp.simulation.grid import LocalGrid

app = ServerApp()


class DeviceFederation(Federation):
    """Clients whose data nobody else sees; the server's own data are the test set.

    Args:
        config: of the run.
    """

    @property
    def num_clients(self) -> int:
        """How many devices a round waits for."""
        return max(1, self.config.min_nodes)

    @property
    def deals(self) -> bool:
        """The data are with the devices."""
        return False

    @property
    def needs_everyone(self) -> bool:
        """A device that never contributes is a matter for whoever runs it."""
        return False

    @property
    def simulates(self) -> bool:
        """Real devices take real seconds."""
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """None: devices may come and go."""
        return ()

    def resolved(self) -> Config:
        """The configuration as it is."""
        return self.config


def description(config: Config) -> str:
    """What devices are told of the data, as text."""
    dataset = Federation(config).dataset
    mean, std = _standardisation(config, dataset.train[0])
    return description_of(dataset, target=config.target, mean=mean, std=std).text()


def _standardisation(
    config: Config, standardised: torch.Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread by which the server's inputs became what they are; empty without."""
    if not config.standardize:
        return (), ()
    plain = Federation(config.model_copy(update={"standardize": False})).dataset.train[0].double()
    axes = (0, *range(2, plain.ndim))  # all but features, or channels of images
    std, mean = torch.std_mean(plain, axes, correction=0)
    changed = (plain != standardised).sum(axes) > 0  # numbers; categories stay 0 and 1
    varies = changed & (plain.amax(axes) > plain.amin(axes))
    return tuple(mean.where(changed, 0.0).tolist()), tuple(std.where(varies, 1.0).tolist())


def devices_of(grid: Grid, config: Config, run_config: Mapping[str, Any]) -> DeviceGrid:
    """The devices of a run, of which the first have come."""
    edges = [int(node) for node in str(run_config.get("edges", "")).split(",") if node]
    devices = DeviceGrid(grid, description=description(config), edges=edges, enough=config.enough)
    log(INFO, "Waiting for %d devices.", max(1, config.min_nodes))
    devices.wait_for(max(1, config.min_nodes), config.timeout)
    return devices


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy of the folder, from its first round or from where it stopped."""
    folder = Path(str(context.run_config["folder"]))
    config = Config.of(Config.read(folder / "config.toml"))
    (unit,) = first_units(config, strategies_of(config))
    own = folder / unit.folder
    going = UnitRun(unit, DeviceFederation(config), folder=own)
    devices = devices_of(grid, config, context.run_config)
    clients = cast(LocalGrid, devices)  # as one that keeps no state of theirs
    going.begin(clients, resume=bool(context.run_config["resume"]))
    # Both models after every round: a run on devices may take days.
    summary = going.advance(clients, config.num_server_rounds, lambda _: going.run.save(own))
    if summary["problem"]:
        raise RuntimeError(summary["problem"])  # else Flower would say that the run completed
