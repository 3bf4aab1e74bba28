"""A run on a site's devices: submitted, watched round by round, and gone on with."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from fedexp.choices import optimizer_key
from fedexp.clients.named import named_optimizer
from fedexp.config import Config
from fedexp.devices import submit
from fedexp.devices.served import superlink_pid
from fedexp.devices.site import Site
from fedexp.files import read_json, save_json
from fedexp.runs import folder as folders
from fedexp.runs.plan import Unit, first_units
from fedexp.runs.resuming import check_resumable

FAILED, NOT_SUBMITTED, STOPPED, NOT_TAKEN = 1, 2, 3, 4
_PAUSE = 1.0  # seconds between looks
_PATIENCE = 60.0  # seconds until somebody must have taken a run
_AWAY = 180.0  # seconds that the server may be away, as when it is started again
NOBODY = "devices came within"  # what the server says if a run ends for want of devices
_RESTARTED = "the server was started again"
_DEPLOYMENT = "deployment.json"
OnRow = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Deployment:
    """A run on a server.

    Attributes:
        site: of the server.
        run_id: Flower's number of it.
        folder: of the run.
        unit: of which the folder has the rounds.
    """

    site: Site
    run_id: int
    folder: Path
    unit: Unit

    @property
    def link(self) -> submit.Link:
        """To the server."""
        return submit.Link.to(self.site)

    def stop(self) -> None:
        """End the run, if it has not ended."""
        submit.stop_run(self.run_id, self.link)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of the rounds so far; the last may be in the writing."""
        path = self.folder / self.unit.folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def watch(self, on_row: OnRow) -> submit.RunStatus:
        """Hand over every round as it ends, until the run has; how it ended.

        Raises:
            ConnectionError: the server has been away for minutes.
            TimeoutError: nobody takes the run. It is stopped then.
        """
        seen, since, answered = len(list(self.rows())), time.monotonic(), time.monotonic()
        first = superlink_pid(self.site)
        while True:
            try:
                now = self._status(first)
                answered = time.monotonic()
            except ConnectionError:
                if time.monotonic() - answered > _AWAY:
                    raise
                time.sleep(_PAUSE)
                continue
            rows = list(self.rows())
            for row in rows[seen:]:
                on_row(row)
            seen = max(seen, len(rows))
            if now.status == "finished":
                return now
            if now.status == "pending" and time.monotonic() - since > _PATIENCE:
                self.stop()
                raise TimeoutError(
                    f"the server has not begun the run in {_PATIENCE:g} s. "
                    "See what `fedexp serve` says."
                )
            time.sleep(_PAUSE)

    def _status(self, superlink: int) -> submit.RunStatus:
        """How far the run is, of a server whose SuperLink was that process when it began.

        With the SuperLink its runs end. Flower itself takes a minute to say so.
        """
        now = submit.run_status(self.run_id, self.link)
        if now.status == "finished" or superlink_pid(self.site) in (superlink, 0):
            return now
        self.stop()
        return replace(now, status="finished", sub_status="failed", details=_RESTARTED)


def submitted(
    site: Site, config: Config, folder: Path, edges: str = "", *, resume: bool = False
) -> Deployment:
    """Start the run in ``folder`` on the server of ``site``; or find it, if it still runs there.

    Args:
        site: is served on this machine.
        config: of the run, as its folder has it.
        folder: of the run.
        edges: names of nodes that may answer for several devices, by comma.
        resume: go on from the last checkpoint.

    Raises:
        ValueError: an edge is no node, or devices would forget what they have spent.
        ConnectionError: the site is not served.
        RuntimeError: the server refuses the run.
    """
    link, root = submit.Link.to(site), folder.absolute()
    (unit,) = first_units(config, {config.strategy: config.strategy})
    before = _told(root) if resume else {}
    edges = str(before.get("edges", "")) or edges
    if run_id := _still_there(link, before):
        return Deployment(site, run_id, root, unit)
    if resume:
        check_keeps_budgets(config)
    own = {"folder": str(root), "resume": resume, "edges": ids_of_edges(link, edges)}
    with tempfile.TemporaryDirectory() as app:
        write_app(Path(app), {**config.values(), **own})
        run_id = submit.start_run(Path(app), link, {})
    save_json(root / _DEPLOYMENT, {"site": str(site.folder), "run-id": run_id, "edges": edges})
    return Deployment(site, run_id, root, unit)


def check_keeps_budgets(config: Config) -> None:
    """Raise ``ValueError`` if devices would spend their privacy budgets once more.

    What a device has spent is kept by Flower for one run of the server's; a run that goes on from
    its checkpoint is another one there.
    """
    optimizer = optimizer_key(config, config.strategy)
    if named_optimizer(optimizer).private:
        raise ValueError(
            f"--resume: with {optimizer} the devices would begin with a whole privacy budget, and "
            "what they have spent already would not count. Start a new run from this one's model "
            "(--initial-model), and add up the epsilons of both."
        )


def write_app(folder: Path, run_config: Mapping[str, Any]) -> None:
    """Write the Flower app of a run: its configuration, and where its two halves are installed.

    A ``flower-supernode`` takes the ClientApp from here; ``fedexp device`` has its own.
    """
    package = folder / "fedexp_run"
    package.mkdir()
    for name, line in {
        "__init__": '"""A run of fedexp on devices."""',
        "server": "from fedexp.devices.server_app import app",
        "client": "from fedexp.devices.app import client as app",
    }.items():
        (package / f"{name}.py").write_text(line + "\n", encoding="utf-8")
    about = {"name": "fedexp-run", "version": "1.0.0", "description": "A run of fedexp on devices"}
    components = {"serverapp": "fedexp_run.server:app", "clientapp": "fedexp_run.client:app"}
    app = {"publisher": "fedexp", "components": components, "config": dict(run_config)}
    pyproject = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {**about, "license": "Apache-2.0", "dependencies": []},
        "tool": {
            "flwr": {"app": app},
            "hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}},
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")


def new_run(
    config: Config, given: set[str], held: ExitStack, *, overwrite: bool
) -> tuple[Config, Path]:
    """Find out what is wrong with a new run, and make its folder.

    Raises:
        ValueError: something is wrong.
    """
    from fedexp import checks
    from fedexp.choices import strategy_keys
    from fedexp.devices.server_app import DeviceFederation

    config = folders.absolute(config)  # the server's process is elsewhere
    if len(strategy_keys(config)) > 1:
        raise ValueError(f"Config(strategy={config.strategy!r}): devices run one. Name one.")
    checks.check_read(config, given, "fedexp run")
    federation = DeviceFederation(config)
    federation.check(config)
    federation.run(config)
    folder = held.enter_context(folders.claimed(config, overwrite=overwrite))
    folders.begin(config, folder, federation)
    return config, folder


def old_run(folder: Path, held: ExitStack) -> tuple[Config, Path]:
    """The same for a run that was interrupted.

    Raises:
        ValueError: it cannot go on.
    """
    from fedexp.devices.server_app import DeviceFederation

    config = Config.of(Config.read(folder / "config.toml"))
    held.enter_context(folders.reopened(folder))
    check_resumable(config, folder, DeviceFederation)
    folders.check_inputs(config, folder)
    return config, folder


def _told(folder: Path) -> dict[str, Any]:
    """What was written down when the folder's run was last submitted."""
    try:
        return dict(read_json(folder / _DEPLOYMENT))
    except (OSError, ValueError):
        return {}


def _still_there(link: submit.Link, told: Mapping[str, Any]) -> int:
    """The id of a run that was submitted if it has not ended; else 0."""
    try:
        run_id = int(told["run-id"])
        return 0 if submit.run_status(run_id, link).status == "finished" else run_id
    except (ValueError, KeyError, RuntimeError):
        return 0


def ids_of_edges(link: submit.Link, names: str) -> str:
    """Ids of the nodes of these names, on a server that answers.

    Raises:
        ValueError: a name is no node's.
        ConnectionError: the site is not served.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {node.name: node.node_id for node in submit.registered_nodes(link)}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--edges {unknown[0]}: is no node of the site. Add it with provision.")
    return ",".join(str(known[name]) for name in wanted)


def early_end(going: Deployment, config: Config, again: str) -> str:
    """Why a run that has completed has not all of its rounds; empty if it has.

    Args:
        going: the run.
        config: of the run.
        again: the command that goes on with it.
    """
    path = going.folder / going.unit.folder / "summary.json"
    if path.exists():
        why = read_json(path).get("stopped", "")
        return f"The strategy {why}." if why else ""
    minutes = config.max_minutes
    return f"--max-minutes {minutes:g} are over. Go on with: {again}" if minutes else ""


def finished(going: Deployment, config: Config) -> str:
    """Write the page and the summary of a run that has ended; the page's path, if there is one."""
    from fedexp.runs.page import report

    rows = list(going.rows())
    path = going.folder / going.unit.folder / "summary.json"
    told = dict(read_json(path)) if path.exists() else {"ended": "interrupted", "problem": None}
    ended = {key: told.get(key) for key in ("ended", "problem")}
    save_json(going.folder / "summary.json", ended)
    return str(report([going.folder])) if rows else ""
