"""The command ``fedexp run``: a run on the devices of a site that is served on this machine."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedexp.config import ROBUST_IS_OFF, robust_by_default
from fedexp.files import reason
from fedexp.flags import add_run_flags, config_of
from fedexp.parser import Once, Parser, fail
from fedexp.terminal import command

LINE = "run a strategy on the devices of a site"
USAGE = "SITE [--FLAG VALUE ...] | SITE --resume --out FOLDER"
_DEFAULTS = {"strategy": "fedexp", "robust": True, "fraction-train": 1.0}

_FORMS = {
    "test-accuracy": "accuracy {:.3f}",
    "test-loss": "loss {:.4g}",
    "server-step-size": "step {:.3g}",
}


def add_device_run_flags(parser: Parser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "SITE", help="folder that `fedexp provision` made and `fedexp serve` serves"
    )
    text = "nodes that answer for many devices (fedexp device --edge)"
    parser.add_argument("--edges", action=Once, metavar="NODE[,NODE]", help=text)
    add_run_flags(parser, _DEFAULTS)


def run(values: dict[str, Any]) -> None:
    """Submit a run, show a line for each round, and write its report.

    Exits with code 1 if the run failed, 2 if it could not be submitted, 3 if it was stopped, and 4
    if nobody took it.
    """
    from fedexp.devices.site import Site

    site = Site.of(values.pop("SITE"))
    resume, overwrite = bool(values.pop("resume")), bool(values.pop("overwrite"))
    given = [f"--{key}" for key, value in values.items() if value is not None and key != "out"]
    if resume and (given or overwrite or not values["out"]):
        raise ValueError(
            "--resume takes --out FOLDER and no other flag: the run's config.toml holds them."
        )
    edges = values.pop("edges") or ""
    with ExitStack() as held:
        _run(site, values, edges, held, resume=resume, overwrite=overwrite)


def _run(
    site: Any, values: dict[str, Any], edges: str, held: ExitStack, *, resume: bool, overwrite: bool
) -> None:
    from fedexp.devices import run as runs
    from fedexp.devices import submit
    from fedexp.logs import without_escape_codes

    without_escape_codes()
    try:
        runs.ids_of_edges(submit.Link.to(site), edges)  # before there is a folder
        if resume:
            config, folder = runs.old_run(Path(values["out"]), held)
        else:
            asked, given = config_of(values, {**_DEFAULTS, "min-nodes": 1})
            if not (asked.robust or "robust" in given or robust_by_default(asked.values())):
                print(ROBUST_IS_OFF, flush=True)
            config, folder = runs.new_run(asked, given, held, overwrite=overwrite)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run is to stop
        going = runs.submitted(site, config, folder, edges, resume=resume)
    except (ConnectionError, RuntimeError) as error:
        fail(str(error), code=runs.NOT_SUBMITTED)
    print(f"Run {going.run_id} has begun. Its folder: {folder}", flush=True)
    print(f"It waits up to {config.timeout:g} s for {config.min_nodes or 1} devices.", flush=True)
    _end(going, config, command("fedexp", "run", site.folder, "--resume", "--out", folder))


def _end(going: Any, config: Any, again: str) -> None:
    from fedexp.devices import run as runs
    from fedexp.runs.page import Live

    live = Live(going.folder)

    def on_row(row: dict[str, Any]) -> None:
        print(round_line(row, config.num_server_rounds), flush=True)
        live()

    try:
        ended = going.watch(on_row)
    except KeyboardInterrupt:
        going.stop()
        fail(f"stopped. Go on with: {again}", code=runs.STOPPED)
    except TimeoutError as error:
        fail(str(error), code=runs.NOT_TAKEN)
    except ConnectionError as error:
        fail(f"{error} Go on with: {again}", code=runs.FAILED)
    try:
        page = runs.finished(going, config)
    except OSError as error:  # the folder has gone, or the disk is full
        page = ""
        print(f"fedexp: no report was written: {reason(error)}.", file=sys.stderr)
    if page:
        print(f"Run folder: {going.folder}\nReport: {page}")
    if ended.sub_status == "stopped":
        fail(f"the run was stopped. Go on with: {again}", code=runs.STOPPED)
    if ended.sub_status != "completed":
        code = runs.NOT_TAKEN if runs.NOBODY in ended.details else runs.FAILED
        why = ended.details.rstrip(". ") or "Flower does not say why"
        fail(f"the run failed: {why}. Go on with: {again}", code=code)
    if why := runs.early_end(going, config, again):
        print(why)


def round_line(row: dict[str, Any], num_rounds: int) -> str:
    """A round in one line.

    Example:
        >>> from fedexp.devices.run_command import round_line
        >>> round_line({"round": 3, "failed": False, "num-clients": 8, "num-late": 2,
        ...     "test-accuracy": 0.9, "server-step-size": 1.25, "round-seconds": 2.0}, 50)
        'round 3/50: 8 clients, 2 late, accuracy 0.900, step 1.25, 2.0 s'
    """
    clients = "1 client" if row["num-clients"] == 1 else f"{row['num-clients']} clients"
    parts = ["failed, the model is unchanged"] if row["failed"] else []
    parts.append(clients)
    for key, word in (("num-failures", "failed"), ("num-late", "late")):
        parts += [f"{row[key]} {word}"] if row.get(key) else []
    # The accuracy says it all where there is one.
    score = "test-loss" if row.get("test-accuracy") is None else "test-accuracy"
    for key in (score, "server-step-size"):
        parts += [_FORMS[key].format(row[key])] if row.get(key) is not None else []
    parts.append(f"{row['round-seconds']:.1f} s")
    return f"round {row['round']}/{num_rounds}: {', '.join(parts)}"
