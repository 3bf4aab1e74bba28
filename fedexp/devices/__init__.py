"""Federated learning on real devices: one server, many nodes, one open port."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.devices.served import Served, serving
    from fedexp.devices.site import Site
    from fedexp.devices.submit import Link, NodeStatus, RunStatus
else:
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        Link="fedexp.devices.submit",
        NodeStatus="fedexp.devices.submit",
        RunStatus="fedexp.devices.submit",
        Served="fedexp.devices.served",
        Site="fedexp.devices.site",
        serving="fedexp.devices.served",
    )

__all__ = ["Link", "NodeStatus", "RunStatus", "Served", "Site", "serving"]
