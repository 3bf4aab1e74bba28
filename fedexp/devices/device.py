"""A device: one process that stays, trains when its server asks, and survives its messages."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedexp import keys
from fedexp.devices.flower.failures import Away, Rejected, RunEnded, UnknownNode
from fedexp.devices.flower.fleet import FleetLink, FleetTask
from fedexp.devices.node_folder import NodeFolder
from fedexp.devices.patience import Patience, Stopped, StopSign, waits
from fedexp.devices.told import asks_who, introduced, settings_of
from fedexp.simulation.flower.messages import message_with
from fedexp.simulation.grid import answer, error_reply

_HEARTBEAT = 20.0  # seconds; the server gives a node up after 60
_PAUSE, _LONGEST_PAUSE = 0.2, 3.0  # seconds between questions whether there is a message
_TRIES = 8  # to send a reply: the server forgets it in the end
_RUNS = 4  # of which the state is kept
_STOPPED = "the device was stopped."

Answer = Callable[[Message, Context], Message]


class _Interrupted(BaseException):
    """The device was told to stop while a client trained."""


def say(line: str) -> None:
    """Print a line for whoever runs the device."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


@dataclass
class Device:
    """A node of a federation, in this process.

    Attributes:
        folder: of the node.
        app: what it runs; its own, whatever the server has.
        node_config: ``Context.node_config`` of the app.
        limit: bytes that a message may have.
        respond: makes the reply to a message; by default the app does.

    Raises:
        Refused: the server does not let it in, or not any more.
    """

    folder: NodeFolder
    app: ClientApp
    node_config: dict[str, Any] = field(default_factory=dict)
    limit: int = 1 << 30
    respond: Answer | None = None

    def __post_init__(self) -> None:
        self.stop = StopSign()
        self._busy = False
        self._contexts: dict[int, Context] = {}  # by run
        self._said: set[str] = set()
        self._patiently = Patience(self.stop, say)

    def run(self) -> None:
        """Answer messages until somebody says stop."""
        link = FleetLink(self.folder.server, self.folder.ca, self.folder.key)
        with self.folder.held(), self._stopped_by_signals():
            try:
                with suppress(Stopped):
                    self._node_id = self._enter(link)
                    self._serve(link)
            finally:
                link.close()
        say("Stopped.")

    def _serve(self, link: FleetLink) -> None:
        with _heartbeats(link):
            try:
                pauses = waits(_PAUSE, _LONGEST_PAUSE)
                while not self.stop.is_set():
                    try:
                        task = self._patiently(link.next_task)
                    except UnknownNode:  # the server has lost what it knew, or took the key away
                        self._node_id = self._enter(link)
                        continue
                    except (Rejected, RunEnded) as error:
                        self._say_once(str(error))
                        task = None
                    if task is None:
                        self.stop.wait(next(pauses))
                    else:
                        self._take(link, task)
                        pauses = waits(_PAUSE, _LONGEST_PAUSE)
            finally:
                with suppress(Exception):
                    link.deactivate(self._node_id)

    def _enter(self, link: FleetLink) -> int:
        """Be let in; a place that a process with this key left without a word is freed first."""
        if (before := self.folder.node_id) is not None:
            with suppress(UnknownNode, Rejected, RunEnded):
                self._patiently(partial(link.deactivate, before))
        node_id = self._patiently(link.activate)
        self.folder.remember(node_id)
        say(f"{self.folder.name} is node {node_id} of {self.folder.server}.")
        return node_id

    def _take(self, link: FleetLink, task: FleetTask) -> None:
        """Answer a message, or say why not; nothing that it holds ends the device."""
        try:
            start = time.perf_counter()
            reply = self._reply(link, task)
            seconds = time.perf_counter() - start
            try:
                self._patiently(partial(link.send, reply, seconds), tries=_TRIES)
            except Rejected as error:
                self._say_once(str(error))
                message = _unread(task)
                self._patiently(partial(link.send, error_reply(message, str(error)), seconds))
        except (RunEnded, Rejected, Away, UnknownNode) as error:
            say(f"A message was not answered: {error}")

    def _reply(self, link: FleetLink, task: FleetTask) -> Message:
        try:
            context = self._context(link, task)
            message = self._patiently(partial(link.load, task, self.limit))
        except ValueError as error:  # not RunEnded: nobody waits for an answer then
            if isinstance(error, Rejected):
                raise
            self._say_once(str(error))
            return error_reply(_unread(task), str(error))
        reply = self._answer(message, context)
        say(f"{_title(message)}: {'failed' if reply.has_error() else 'done'}")
        if reply.has_error():
            self._say_once(str(reply.error.reason))
        return reply

    def _answer(self, message: Message, context: Context) -> Message:
        try:
            self._busy = True
            if self.respond is None and asks_who(message):  # whatever app this is
                return introduced(message, context)
            reply = (self.respond or partial(answer, self.app))(message, context)
            stopped = self.stop.is_set() and reply.has_error()
            return error_reply(message, _STOPPED) if stopped else reply
        except (_Interrupted, KeyboardInterrupt):
            return error_reply(message, _STOPPED)
        except Exception as error:  # beyond the app, which is guarded
            return error_reply(message, f"{type(error).__name__}: {error}")
        finally:
            self._busy = False

    def _context(self, link: FleetLink, task: FleetTask) -> Context:
        run_id = task.metadata.run_id
        if run_id not in self._contexts:
            config = self._patiently(partial(link.run_config, run_id))
            while len(self._contexts) >= _RUNS:
                self._contexts.pop(next(iter(self._contexts)))
            self._contexts[run_id] = Context(
                run_id, self._node_id, dict(self.node_config), RecordDict(), config
            )
        context = self._contexts[run_id]
        context.node_id = self._node_id
        return context

    def _say_once(self, reason: str) -> None:
        """Say why a message was answered with an error, once for all messages."""
        if reason not in self._said:
            self._said.add(reason)
            say(reason)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C end the device after a last word to the server."""

        def note(number: int, frame: Any) -> None:
            again = self.stop.is_set()
            self.stop.set()
            if self._busy:
                raise _Interrupted
            if again:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _heartbeats(link: FleetLink) -> Iterator[None]:
    """Tell the server regularly that the node is there, also while a client trains."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(_HEARTBEAT):
            with suppress(Exception):  # what is wrong is said where messages are asked for
                link.heartbeat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _title(message: Message) -> str:
    """What a message is about, such as "train, round 3"."""
    number = settings_of(message).get(keys.SERVER_ROUND) if message.has_content() else None
    kind = message.metadata.message_type
    return kind if number is None else f"{kind}, round {str(number)[:20]}"


def _unread(task: FleetTask) -> Message:
    """The message of ``task`` as far as it is known."""
    return message_with(task.metadata, RecordDict())
