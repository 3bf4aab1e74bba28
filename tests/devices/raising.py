"""A ClientApp of a user's own: it raises, in as many ways as there are."""

import sys

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedexp.devices.app import client
from fedexp.devices.told import settings_of

app = ClientApp()
app.query()(client)


@app.train()
def train(message: Message, context: Context) -> Message:
    match int(settings_of(message)["server-round"]):
        case 1:
            raise KeyError("no such thing")
        case 2:
            sys.exit(3)
        case 3:
            return b"x" * (1 << 34)  # type: ignore[return-value]
    return client(message, context)
