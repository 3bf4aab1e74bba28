"""Messages and runs as Flower's own processes make them. All of it is needed: no switch here."""

from __future__ import annotations

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.run import Run as Run  # for the annotations of a grid
from flwr.supercore.task_identity import TaskIdentity


def identify(run_id: int) -> None:
    """Tell Flower who this process is.

    Sets ``TaskIdentity``, which Flower's launcher sets in every process that it starts. Without
    it ``Message(content, node, kind)`` raises, in our code and in every strategy.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1


def message_with(metadata: Metadata, body: RecordDict | Error) -> Message:
    """A message of this ``metadata``.

    Uses ``Message(metadata=...)``, "for internal use only": a message that came over a network
    is put together so. Without it a client's message could not name the server as its sender.
    """
    if isinstance(body, Error):
        return Message(metadata=metadata, error=body)  # type: ignore[call-overload, no-any-return]
    return Message(metadata=metadata, content=body)  # type: ignore[call-overload, no-any-return]


def number(message: Message, message_id: str) -> Message:
    """Give ``message`` its id, in place.

    Sets ``Metadata._message_id``, as Flower's grids do: the SuperLink gives the ids, so there is
    no public way. Without it a reply could not say which message it answers.
    """
    message.metadata.__dict__["_message_id"] = message_id
    return message


def empty_run(run_id: int) -> Run:
    """A run that only has an id. ``Grid.run`` must return a ``Run``, which is not exported."""
    return Run.create_empty(run_id)


def check_run(run: object) -> Run:
    """``run``.

    Raises:
        TypeError: it is no ``Run``; Flower's grids say the same.
    """
    if not isinstance(run, Run):
        raise TypeError(f"`run` must be an instance of Run, got {type(run).__name__}")
    return run


def copy_of(run: Run) -> Run:
    """A copy, which may be changed."""
    return Run(**vars(run))
