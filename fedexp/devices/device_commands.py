"""The command ``fedexp device``: its flags, and what it does with them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedexp.extras import imported
from fedexp.parser import Once, Parser, WholeNumber

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

LINE = "train on this machine's data for a server elsewhere"
USAGE = "FOLDER --data PATH [--app M:NAME] [--threads N] [--max-memory 300M] | FOLDER --new-key"
_TORCH, _NUMPY = "fedexp.devices.app:client", "fedexp.devices.linear:client"


def add_device_flags(parser: Parser) -> None:
    """Add the flags of the command."""
    parser.add_argument("FOLDER", help="of the node, as whoever runs the server gave it to you")
    text = "data of this device: .npz, CSV files or a folder of images"
    parser.add_argument("--data", action=Once, metavar="PATH", help=text)
    text = "make node.key in FOLDER, and node.pub to hand over"
    parser.add_argument("--new-key", action=Once, nargs=0, const=True, dest="new-key", help=text)
    text = "a ClientApp of your own (default: ours, of PyTorch if that is installed)"
    parser.add_argument("--app", action=Once, metavar="MODULE:NAME", help=text)
    text = "that numerical libraries may use (default: 1)"
    parser.add_argument("--threads", action=WholeNumber, metavar="N", help=text)
    text = "more makes a message fail, and not the device"
    parser.add_argument("--max-memory", action=Once, dest="max-memory", metavar="SIZE", help=text)
    text = "data of many devices, of which the sum is sent"
    parser.add_argument("--edge", action=Once, nargs="+", metavar="PATH", help=text)


def device(values: dict[str, Any]) -> None:
    """Be a node until somebody says stop."""
    folder = Path(values["FOLDER"])
    if values["new-key"]:
        _make_key(folder, values)
        return
    if bool(values["data"]) == bool(values["edge"]):
        raise ValueError("fedexp device takes --data PATH, or --edge PATH PATH ... Give one.")
    from fedexp.devices import limits

    limit = limits.size_of(values["max-memory"]) if values["max-memory"] else 0
    limits.set_threads(values["threads"] or 1)
    _be_node(folder, values, limit)


def _make_key(folder: Path, values: dict[str, Any]) -> None:
    if others := [f"--{k}" for k, x in values.items() if x and k not in ("FOLDER", "new-key")]:
        raise ValueError(f"--new-key takes no other flag, {others[0]} was given. Leave it out.")
    from fedexp.devices.node_folder import new_key

    print(f"Hand over {new_key(folder)}, and keep node.key to yourself.")


def _be_node(folder: Path, values: dict[str, Any], limit: int) -> None:
    from fedexp.devices.device import Device
    from fedexp.devices.device_data import check_path
    from fedexp.devices.limits import set_max_memory
    from fedexp.devices.node_folder import NodeFolder
    from fedexp.devices.told import DATA, NAME

    node = NodeFolder.read(folder)
    paths = [Path(path).expanduser().absolute() for path in values["edge"] or [values["data"]]]
    if values["app"] is None:  # others may read what they like
        for path in paths:
            check_path(path)
    app = app_named(values["app"])
    made = Device(node, app, {NAME: node.name})
    if values["edge"]:
        from fedexp.devices.edge import Edge

        made.respond = Edge(app, paths, node.name, made.stop.is_set)
    else:
        made.node_config[DATA] = str(paths[0])
    if limit:
        set_max_memory(limit)
        made.limit = min(made.limit, limit // 2)
    made.run()


def app_named(name: str | None) -> ClientApp:
    """The ClientApp ``module:name``, or our own.

    Raises:
        ValueError: there is none of that name.
    """
    from flwr.clientapp import ClientApp

    name = name or (_TORCH if find_spec("torch") else _NUMPY)
    app = imported(f"--app {name}", name)
    if not isinstance(app, ClientApp):
        raise ValueError(f"--app {name}: is {type(app).__name__}, must be a ClientApp. Name one.")
    return app
