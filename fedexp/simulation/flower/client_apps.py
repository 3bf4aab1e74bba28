"""What a ClientApp of Flower's was made of, for which Flower gives no public way to ask."""

from __future__ import annotations

from flwr.clientapp import ClientApp


def has_mods(app: ClientApp) -> bool:
    """Whether mods see the app's messages.

    Reads ``ClientApp._mods``. Clients that train in a group have no messages of their own, so an
    app with mods must not. Without the name every ClientApp counts as one with mods: slower, and
    never wrong.
    """
    return bool(getattr(app, "_mods", isinstance(app, ClientApp)))


def is_of_client_fn(app: ClientApp | None) -> bool:
    """Whether the app was made of a ``client_fn``, Flower's older API.

    Reads ``ClientApp._call``, for an early refusal. Without the name such an app is refused when
    its first client fails.
    """
    return bool(getattr(app, "_call", None))
