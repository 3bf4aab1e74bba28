"""Flower's Grid over devices in this process, with all messages in Flower's encoding."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedexp.devices.flower.objects import ids_of, inflated
from fedexp.simulation.flower.messages import number

Respond = Callable[[Message, Context], Message]


def travelled(message: Message) -> Message:
    """``message`` as it arrives at the other side of a network."""
    message_id = message.object_id
    number(message, message_id)
    tree, objects = ids_of(message)
    contents = {object_id: part.deflate() for object_id, part in objects.items()}
    return number(inflated(tree.object_id, contents, 1 << 30), message_id)


class WireGrid(Grid):
    """Nodes by id: who answers, and its ``node_config``; ``away`` are not connected."""

    def __init__(
        self,
        nodes: Mapping[int, tuple[Respond, Mapping[str, Any]]],
        run_config: Mapping[str, Any] | None = None,
        order: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self.nodes, self.run_config, self.order = nodes, dict(run_config or {}), order
        self.away: set[int] = set()
        self.contexts: dict[int, Context] = {}
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.nodes if node not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in map(travelled, messages):
            self.sent.append(message)
            node = message.metadata.dst_node_id
            respond, config = self.nodes[node]
            if node not in self.contexts:
                self.contexts[node] = Context(
                    1, node, dict(config), RecordDict(), dict(self.run_config)
                )
            ids.append(message.metadata.message_id)
            if node not in self.away:
                self.replies[ids[-1]] = travelled(respond(message, self.contexts[node]))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = [i for i in message_ids if i in self.replies]
        return [self.replies.pop(i) for i in self.order(there)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
