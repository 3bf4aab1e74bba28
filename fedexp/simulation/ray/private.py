"""Every private name and every patch of Ray: the fence around them, see ``simulation.flower``.

Each function says what it uses, why, and what happens without it. ``FEDEXP_PLAIN=1`` turns all of
them off but the notes, by which a client that hangs is found, and ``ready``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from logging import WARNING
from typing import Any

from flwr.common.logger import log

from fedexp.simulation.flower.switch import Patch, is_plain

_INLINE_ANSWER = 4 << 20  # bytes; larger ones go through the object store, which takes 3 ms more


def prepare_environment() -> None:
    """Set what Ray reads when it is imported; call this before.

    Sets ``RAY_worker_niceness``, a setting of Ray's C++ part: the workers run at this process's
    priority, since the clients are the work. Ray itself lowers them to 15, which on a busy machine
    lets everybody else go first. A release that does not know the variable ignores it.
    """
    if not is_plain():
        os.environ.setdefault("RAY_worker_niceness", "0")


def start(
    init: Callable[..., Any], shutdown: Callable[[], Any], *, shows_log: bool, **options: Any
) -> None:
    """Start Ray on this machine, so that it starts and answers quickly.

    Passes ``_system_config``, settings of Ray's C++ part that have no public name, and starts it
    ``without_idle_processes``. If Ray does not start so, it starts once more as it is.

    Args:
        init: ``ray.init``.
        shutdown: ``ray.shutdown``, called between the two attempts.
        shows_log: what the workers print is wanted.
        options: public ones of ``ray.init``.
    """
    if not is_plain():
        try:
            with without_idle_processes(shows_log):
                init(**options, _system_config=_settings())
            return
        except Exception as error:  # Ray raises no kind of its own
            line = str(error).partition("\n")[0]
            log(WARNING, "Ray does not start with fedexp's settings (%s): it tries again.", line)
            shutdown()
    init(**options)


def _settings() -> dict[str, Any]:
    return {
        "max_direct_call_object_size": _INLINE_ANSWER,
        # A model that nobody needs any more makes room at once, not within a second: else every
        # process maps the models of some ten rounds.
        "free_objects_period_milliseconds": 0,
        # The workers' processes begin, and import what they need, while Ray still starts.
        "enable_worker_prestart": True,
        "preload_python_modules": ["fedexp.simulation.worker"],
    }


def without_idle_processes(shows_log: bool) -> AbstractContextManager[object]:
    """Start Ray without what has nothing to do on one machine: 270 MB, and half a second.

    Replaces three methods of ``ray._private.node.Node``, for which Ray has no option. They start
    the autoscaler, the process that sends us the workers' output (kept if it is shown), and the
    server of the web page and of the job interface, which sets ``_webui_url``. What a release does
    not have is left alone.
    """
    try:
        from ray._private.node import Node
    except ImportError:
        return nullcontext()
    if shows_log:
        return Patch(Node, start_monitor=_start_nothing, start_api_server=_start_no_server)
    return Patch(
        Node,
        start_monitor=_start_nothing,
        start_api_server=_start_no_server,
        start_log_monitor=_start_nothing,
    )


def _start_nothing(node: Any) -> None:
    """In place of starting a process."""


def _start_no_server(node: Any, **_: Any) -> None:
    node._webui_url = ""


def print_plainly() -> None:
    """Print the lines of workers ourselves: Ray colours them, wherever they go.

    Replaces Ray's handler ``ray_print_logs`` at ``global_worker_stdstream_dispatcher``, under the
    same name, so that Ray removes ours when it ends. Without the name Ray prints, in colours.
    """
    if is_plain():
        return
    with suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")
        dispatcher.add_handler("ray_print_logs", _print_lines)


def _print_lines(data: Mapping[str, Any]) -> None:
    if str(data["pid"]).isdigit():  # else Ray's own processes
        to = sys.stderr if data["is_err"] else sys.stdout
        print(*(f"worker {data['pid']}: {line}" for line in data["lines"]), sep="\n", file=to)


def write_note(board: bytes, text: str) -> None:
    """Write ``text`` where every process of the cluster can read it, under the key ``board``.

    Uses ``ray.experimental.internal_kv``, Ray's own store of small values. An actor can be asked
    while it works only in a second thread, which would cost every call 4 ms. Without the store a
    client that hangs is not known by name: all clients of its worker's task become error replies.
    """
    with suppress(ImportError, AttributeError):
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(board, text.encode())


def read_note(board: bytes) -> str | None:
    """What ``write_note`` wrote, if there is anything."""
    with suppress(ImportError, AttributeError):
        from ray.experimental import internal_kv

        text = internal_kv._internal_kv_get(board)
        return None if text is None else text.decode()
    return None


def wipe_note(board: bytes) -> None:
    """Forget what ``write_note`` wrote."""
    with suppress(ImportError, AttributeError):
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(board)


def ready(actor: Any) -> Any:
    """Ray's reference to an answer that comes once ``actor`` has started; None if nobody tells.

    Uses ``__ray_ready__``, a method that Ray gives every actor. Without it the first call of an
    actor that dies at its start says so.
    """
    try:
        return actor.__ray_ready__.remote()
    except AttributeError:
        return None
