"""A client that hides its update before it sends it, where the server asks for local privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.arrays import Arrays, clip_scale, trainable_names, update_norm
from fedexp.privacy.noise import SeededNoise, SystemNoise
from fedexp.wire import ClientResult


def hidden(
    result: ClientResult, before: Arrays, config: Mapping[str, Any], partition: int
) -> ClientResult:
    """``w - (Δᵢ min(1, C/‖Δᵢ‖) + N(0, σ² I))`` in place of ``w - Δᵢ``, and no metrics.

    Buffers go back as they came. An update that is not finite counts as zero: noise alone is sent,
    since an error would tell of the data. Without the setting ``local-noise`` the result is as it
    is.

    Args:
        result: what the client would send.
        before: ``w``, the model that was sent.
        config: settings: ``local-noise`` (``σ``), ``local-clip`` (``C``), and ``local-noise-seed``
            for noise that a seed fixes; the system's without it.
        partition: of the client, for such a seed.

    Example:
        >>> import numpy as np
        >>> from fedexp.clients.local_privacy import hidden
        >>> from fedexp.wire import ClientResult
        >>> result = ClientResult(7, {"w": np.zeros(2)}, {"num-examples": 3, "train-loss": 0.5})
        >>> told = {"local-noise": 0.1, "local-clip": 1.0}
        >>> dict(hidden(result, {"w": np.ones(2)}, told, 0).metrics)
        {'num-examples': 1, 'local-noise': 0.1}
    """
    if keys.LOCAL_NOISE not in config:
        return result
    sigma, bound = float(config[keys.LOCAL_NOISE]), float(config[keys.LOCAL_CLIP])
    names = trainable_names(before) - result.buffers
    norm, trained = update_norm(before, result.arrays, names), result.arrays
    if not math.isfinite(norm):
        norm, trained = 0.0, before
    seed, server_round = config.get(keys.LOCAL_SEED), int(config.get(keys.SERVER_ROUND, 0))
    noise = SystemNoise() if seed is None else SeededNoise(int(seed), partition, server_round)
    scale, after = clip_scale(norm, bound), {}
    for name, w in before.items():
        after[name] = w
        if name in names:
            moved = scale * (np.float64(trained[name]) - w)
            moved = moved + sigma * noise.normal(w.size).reshape(w.shape)
            after[name] = np.asarray(w + moved, dtype=w.dtype)
    # Losses, rates and the number of examples are of the client's data too.
    metrics = {keys.NUM_EXAMPLES: 1, keys.LOCAL_NOISE: sigma}
    return replace(result, arrays=after, metrics=metrics)
