"""How often an address may call."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_ADDRESSES = 65_536  # the table must not grow with the number of those who knock


class Rates:
    """A bucket of tokens for each address: a call takes one, and they come back steadily.

    Args:
        per_second: tokens that come back in a second.
        burst: tokens of a full bucket, which is what an address starts with.
        clock: in seconds.

    Example:
        >>> from fedexp.devices.rates import Rates
        >>> rates = Rates(per_second=1, burst=2, clock=lambda: 0.0)
        >>> [rates.admits("192.0.2.1") for _ in range(3)]
        [True, True, False]
    """

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, address: str) -> bool:
        """Whether a call from ``address`` may be answered now; it takes a token if so."""
        who, now = owner_of(address), self._clock()
        tokens, before = self._buckets.pop(who, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * self._per_second)
        admitted = tokens >= 1
        self._buckets[who] = (tokens - admitted, now)  # at the end: it called last
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return admitted


def owner_of(address: str) -> str:
    """Who calls: one household or firm owns a whole /64 of IPv6, and can use each address in it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
