"""The two synthetic federations of the literature; their data are drawn at random."""

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset


def regression(
    *,
    num_clients: int = 20,
    num_rows: int = 30,
    num_features: int = 1000,
    alpha: float = 0.1,
    beta: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Overparameterised linear regression: one model fits the rows of all clients exactly.

    Client ``i`` has ``mᵢ ~ N(Bᵢ, I)``, ``Bᵢ ~ N(0, β²)`` and a model ``wᵢ ~ N(uᵢ, I)``,
    ``uᵢ ~ N(0, α²)``. Its rows are ``x ~ N(mᵢ, I)``, scaled to length one. Its targets are ``x·wᵢ``
    of the rows before that, scaled so that the vector of a client's targets has length one.

    Args:
        num_clients: ``M``.
        num_rows: rows of each client.
        num_features: ``d``; larger than ``num_clients · num_rows`` makes every fit exact.
        alpha: ``α``, standard deviation of the clients' model means.
        beta: ``β``, standard deviation of the clients' input means.
        seed: of all draws.
        dtype: of the tensors; the draws are float64.

    Returns:
        Inputs ``[M · num_rows, d]``, float targets ``[M · num_rows]``, one key per client. The
        experiment reports the training loss, so the test set is the training set.

    Source: Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604, synthetic experiment.

    Example:
        >>> from fedexp.datasets.synthetic import regression
        >>> data = regression(num_clients=2, num_rows=3, num_features=5)
        >>> data.train[0].shape, data.train[1].square().sum().round().item()  # two clients
        (torch.Size([6, 5]), 2.0)
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    model_mean = rng.normal(0, alpha, (num_clients, 1))
    input_mean = rng.normal(
        rng.normal(0, beta, (num_clients, 1, 1)), 1, (num_clients, 1, num_features)
    )
    rows = input_mean + rng.standard_normal((num_clients, num_rows, num_features))
    models = model_mean + rng.standard_normal((num_clients, num_features))
    # Of the rows before they are scaled to length one.
    targets = np.einsum("crf,cf->cr", rows, models)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    train = (
        torch.from_numpy(rows.reshape(-1, num_features)).to(dtype),
        torch.from_numpy(targets.ravel()).to(dtype),
    )
    return Dataset(train, train, 0, np.repeat(np.arange(num_clients), num_rows))


def classification(
    *,
    num_clients: int = 30,
    alpha: float = 1.0,
    beta: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Synthetic(α, β): ten classes by a linear model of 60 features that differs by client.

    ``y = argmax(Wᵢᵀx + bᵢ)`` with entries of ``Wᵢ, bᵢ ~ N(uᵢ, 1)``, ``uᵢ ~ N(0, α²)``;
    ``x ~ N(vᵢ, Σ)``, ``Σⱼⱼ = j^-1.2``, entries of ``vᵢ ~ N(Bᵢ, 1)``, ``Bᵢ ~ N(0, β²)``.
    Client ``i`` has ``50 + ⌊LogNormal(4, 2²)⌋`` examples; a tenth go to the test set.

    Args:
        num_clients: clients, each its own natural key.
        alpha: ``α``, how much the clients' models differ.
        beta: ``β``, how much their inputs differ.
        seed: of all draws.

    Source: Li et al. 2020, arXiv:1812.06127, appendix C; Caldas et al. 2018, arXiv:1812.01097.

    Example:
        >>> from fedexp.datasets.synthetic import classification
        >>> data = classification(num_clients=2)
        >>> data.train[0].shape[1], data.num_classes, sorted(set(data.keys.tolist()))
        (60, 10, [0, 1])
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    sizes = 50 + rng.lognormal(4, 2, num_clients).astype(np.int64)
    client = np.repeat(np.arange(num_clients), sizes)
    model_mean = rng.normal(0, alpha, (num_clients, 1, 1))
    models = model_mean + rng.standard_normal((num_clients, 61, 10))  # the last row is bᵢ
    means = rng.normal(rng.normal(0, beta, (num_clients, 1)), 1, (num_clients, 60))
    # A standard deviation of j^-0.6 is a variance of j^-1.2.
    scales = np.arange(1, 61) ** -0.6
    inputs = means[client] + scales * rng.standard_normal((len(client), 60))
    ends = np.cumsum(sizes)
    scores = [
        inputs[end - size : end] @ model[:60] + model[60]
        for model, size, end in zip(models, sizes, ends, strict=True)
    ]
    x = torch.from_numpy(inputs).float()
    y = torch.from_numpy(np.concatenate(scores).argmax(1))
    # The last tenth of each client's rows: they are drawn independently, so any tenth would do.
    held_out = ends[client] - np.arange(len(client)) <= sizes[client] // 10
    train, test = torch.from_numpy(~held_out), torch.from_numpy(held_out)
    return Dataset((x[train], y[train]), (x[test], y[test]), 10, client[~held_out])
