"""The client's side of a step size under Flower's SecAgg+: its squared norm, under the mask.

Needs NumPy and Flower alone, and works with every client of Flower's older API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
)
from flwr.compat.common.recorddict_compat import (
    arrayrecord_to_parameters,
    parameters_to_arrayrecord,
)
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import first_non_finite, update_norm
from fedexp.records import decoded

NUM_COPIES = 256
"""Of the squared norm. SecAgg+ rounds each at random, and the mean of ``n`` errs ``√n`` less."""

Values = list[NDArray[Any]]


def squared_norm_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod that adds ``‖Δᵢ‖²/S`` to what SecAgg+ masks; ``legacy.FedExP(secure=True)`` needs it.

    Put it after Flower's: ``mods=[secaggplus_mod, squared_norm_mod]``. Then it sees the model
    before it is masked. The array that it adds has ``NUM_COPIES`` equal entries. ``S`` and the
    arrays that count come from the server, in the fit config. A run without secure aggregation is
    left as it is, and so the server gets no norm that it could read.

    SecAgg+ cuts what is out of its range without a word. This mod raises in its place: the server
    sees a failed client and goes on without it, as with any client that drops out. The error says
    no value, because it travels in the clear.

    Raises:
        ValueError: it stands before ``secaggplus_mod``; ``num_examples`` is not positive, or larger
            than ``max_weight``; the arrays are not those of the model; the model or the squared
            norm is out of the clipping range or not finite; or so many clients are asked that
            their sum overflows the modulus.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        return call_next(message, context)
    protocol = message.content.config_records.get(RECORD_KEY_CONFIGS)
    if protocol is None:
        return call_next(message, context)
    if Key.STAGE in protocol:  # secaggplus_mod takes it out before it calls the next one
        raise ValueError(
            "squared_norm_mod: it must see the model before it is masked. "
            "Use mods=[secaggplus_mod, squared_norm_mod]."
        )
    content = message.content
    settings = dict(content.config_records["fitins.config"])
    before = _values(content.array_records["fitins.parameters"])
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    values = _values(reply.content.array_records["fitres.parameters"])
    sizes = reply.content.metric_records["fitres.num_examples"]
    if [np.shape(x) for x in values] != [np.shape(x) for x in before]:
        raise ValueError(
            "squared_norm_mod: fit returns other arrays than it got, and the server could add "
            "nothing up. Return those of the model, in their order."
        )
    scale = settings.get(_config_key(keys.SECURE_NORM_SCALE))
    if scale is not None:
        moved = str(settings[_config_key(keys.SECURE_NORM_ARRAYS)]).split()
        values.append(_copies(before, values, moved) / cast(float, scale))
    agreed = cast(Mapping[str, Any], context.state.config_records[RECORD_KEY_STATE])
    check_range(values, cast(float, sizes["num_examples"]), agreed)
    # SecAgg+ does not unmask an array without dimensions.
    parameters = ndarrays_to_parameters([np.atleast_1d(x) for x in values])
    reply.content.array_records["fitres.parameters"] = parameters_to_arrayrecord(parameters, True)
    return reply


def check_range(values: Sequence[NDArray[Any]], weight: float, agreed: Mapping[str, Any]) -> None:
    """Raise unless SecAgg+ can hold ``values`` times ``weight / max_weight``.

    Args:
        values: arrays of the model, and after them the squared norm.
        weight: ``num_examples`` of the client.
        agreed: what the server has fixed for the protocol, by Flower's keys.

    Raises:
        ValueError: it cannot.
    """
    ratio = weight / agreed[Key.MAX_WEIGHT]
    if not weight > 0:
        raise ValueError("squared_norm_mod: the number of examples is not positive. Return it.")
    if ratio > 1:
        raise ValueError(
            f"squared_norm_mod: {weight:g} examples are more than max_weight="
            f"{agreed[Key.MAX_WEIGHT]:g}. Use SecAggPlusWorkflow(max_weight=...) of at least that."
        )
    if agreed[Key.SAMPLE_NUMBER] * agreed[Key.TARGET_RANGE] >= agreed[Key.MOD_RANGE]:
        raise ValueError(
            f"squared_norm_mod: the sum over {agreed[Key.SAMPLE_NUMBER]} clients overflows "
            "modulus_range. Ask fewer clients, or use a smaller quantization_range."
        )
    for i, x in enumerate(values):
        if first_non_finite({"": x}) is not None:
            raise ValueError(f"squared_norm_mod: array {i} holds NaN or infinity.")
        if x.size and ratio * float(np.abs(x).max()) > agreed[Key.CLIPPING_RANGE]:
            raise ValueError(
                f"squared_norm_mod: array {i} of {len(values)} (the last is the squared norm) is "
                "out of the clipping range and would be cut. Use a larger SecureNorms(scale=...) "
                "for the last, SecAggPlusWorkflow(clipping_range=...) for others."
            )


def _copies(before: Values, after: Values, moved: Sequence[str]) -> NDArray[np.float64]:
    """``‖Δᵢ‖²`` over the arrays whose numbers are in ``moved``."""
    old, new = ({str(i): x for i, x in enumerate(arrays)} for arrays in (before, after))
    return np.full(NUM_COPIES, update_norm(old, new, frozenset(moved)) ** 2)


def _values(record: Any) -> Values:
    tensors = arrayrecord_to_parameters(record, keep_input=True).tensors
    return [decoded(str(i), data) for i, data in enumerate(tensors)]


def _config_key(key: str) -> str:
    return key.replace("-", "_")  # as the older API writes them
