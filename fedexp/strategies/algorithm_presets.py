"""Named strategies that are FedAvg with an extension: algorithms that change clients or sums."""

from __future__ import annotations

from typing import Any

from fedexp.strategies.dynamic_regularization import DynamicRegularization
from fedexp.strategies.extensions import Extension, check_extensions
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.normalized_averaging import NormalizedAveraging
from fedexp.strategies.presets import FedAvg


class FedNova(FedAvg):
    """FedAvg by local step, for clients that take unequally many: ``w ← w - τ Σ pᵢ Δᵢ/τᵢ``.

    ``τ = Σ pᵢτᵢ``, ``Σ pᵢ = 1``, and client ``i`` takes ``τᵢ`` local steps. Wang et al. 2020,
    arXiv:2007.07481. With equally many steps everywhere it is FedAvg. See ``NormalizedAveraging``.

    Args:
        *args: those of Flower's FedAvg.
        **kwargs: those of ``FedAvg``.

    Example:
        >>> from fedexp.strategies import FedNova
        >>> from fedexp.strategies.normalized_averaging import NormalizedAveraging
        >>> FedNova(robust=True).extensions.find(NormalizedAveraging).bounds
        MedianBounds(norm=3.0, weight=3.0, step_norm=1.5, step=3.0)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = NormalizedAveraging(_bounds(kwargs))
        super().__init__(*args, **_with(own, kwargs))


class FedDyn(FedAvg):
    """FedAvg whose clients add ``-⟨λᵢ, y⟩ + α/2 ‖y - w‖²`` to their loss: ``w ← w - Δ̄ - h/α``.

    ``λᵢ ← λᵢ + α Δᵢ``, and ``h`` is the mean of ``λᵢ`` over all clients. Acar et al. 2021,
    arXiv:2111.04263. Clients keep ``λᵢ`` in ``Context.state``. The paper averages clients
    uniformly, which is ``weighted=False``. See ``DynamicRegularization``.

    Args:
        *args: those of Flower's FedAvg.
        proximal_mu: ``α > 0`` of the paper, which is FedProx's ``μ`` at the clients.
        **kwargs: those of ``FedAvg``.

    Raises:
        ValueError: ``α`` is not positive.

    Example:
        >>> from fedexp.strategies import FedDyn
        >>> from fedexp.strategies.dynamic_regularization import DynamicRegularization
        >>> FedDyn(proximal_mu=0.01).extensions.find(DynamicRegularization).alpha
        0.01
    """

    def __init__(self, *args: Any, proximal_mu: float = 0.1, **kwargs: Any) -> None:
        bounds = _bounds(kwargs) if kwargs.get("weighted", True) else None
        own = DynamicRegularization(proximal_mu, bounds)
        super().__init__(*args, **_with(own, kwargs))


def _bounds(kwargs: dict[str, Any]) -> MedianBounds | None:
    robust = kwargs.get("robust", False)
    found = MedianBounds() if robust is True else robust
    return found if isinstance(found, MedianBounds) else None


def _with(own: Extension, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with an extension before those that the caller gave.

    Raises:
        ValueError: they ask for control variates, which count on FedAvg's sums.
    """
    if kwargs.get("control_variates"):
        raise ValueError(
            f"{type(own).__name__}: control variates do not go with it. Leave them out, or use "
            "Scaffold."
        )
    return kwargs | {"extensions": [own, *check_extensions(kwargs.get("extensions"))]}
