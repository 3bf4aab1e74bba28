"""A client that tunes the step size of its own local steps before it takes them.

Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495) in a federation: every few rounds a client descends on
``log f(w_t)`` by the step size, where ``w_t`` is what its local steps make of the received model
and ``f`` the loss on rows that it has set aside. Then it trains with what it found. The server
sends the clients' mean back (`fedexp.strategies.step_sharing`), at which the other rounds train.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fedexp import keys
from fedexp.clients.arguments import one_line
from fedexp.clients.data import Examples, batches_of
from fedexp.clients.known import is_torchs, writes_to_weights
from fedexp.clients.losses import Loss, is_known
from fedexp.clients.module import layout_of
from fedexp.clients.settings import ClientSettings
from fedexp.learned_steps.descent import LearnedStepSize, MetaDescent, learned_step_size
from fedexp.learned_steps.models import MetaLoss, Weights, mean_loss

_OWNER = "learned-step"
_LONGEST = 1e6  # norms of the first weights; a trajectory that goes further is truncated
_MOST_HALVINGS = 64  # from 1e19 times too large to 1
_TRUE_GRADIENTS: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.Flatten, nn.Linear, nn.Conv1d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Dropout),
    *(nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d),
)
"""Layers whose gradient, as PyTorch returns it, is the gradient of what they compute."""

_Batch = tuple[int, Tensor, Tensor]
"""What seeds the random numbers of the forward pass, inputs and targets."""


class Tuned(NamedTuple):
    """What came of it.

    Attributes:
        step_size: ``η``, the one at which the objective was least.
        failed: whether all meta-steps were in vain: no trajectory ended at a finite loss.
    """

    step_size: float
    failed: bool


@dataclass(frozen=True)
class StepTuning:
    """When and how clients tune their step size: the settings of ``learned-step``.

    Attributes:
        every: a client tunes in the rounds 1, 1 + ``every``, 1 + 2 ``every``, ...
        steps: meta-steps in each of these rounds.
        by: ``validation``: the loss at the end is that of rows which the steps do not see;
            ``training``: it is that of the batches of the steps.
        validation_fraction: of the client's rows, which are set aside.
        objective: ``log`` for ``(1/t) log f(w_t)``, ``naive`` for ``f(w_t)``.

    Raises:
        ValueError: one of them cannot be.

    Example:
        >>> from fedexp.clients.step_tuning import StepTuning
        >>> tuning = StepTuning(every=5)
        >>> [t for t in range(1, 12) if tuning.is_due({"server-round": t})]
        [1, 6, 11]
    """

    every: int = 5
    steps: int = 20
    by: str = "validation"
    validation_fraction: float = 0.25
    objective: Any = "log"

    def __post_init__(self) -> None:
        count = "must be a whole number of at least 1"
        fraction = self.validation_fraction
        rules = {
            "every": (_is_count(self.every), f"{count}. Use 5"),
            "steps": (_is_count(self.steps), f"{count}. Use 20"),
            "by": (self.by in ("validation", "training"), "must be validation or training"),
            "validation_fraction": (
                isinstance(fraction, float) and 0 < fraction < 1,
                "must be a number between 0 and 1. Use 0.25",
            ),
            "objective": (self.objective in ("log", "naive"), "must be log or naive"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                key, value = name.replace("_", "-"), getattr(self, name)
                raise ValueError(f"{_OWNER}({key}={value!r}): {rule}.")

    def is_due(self, config: Mapping[str, Any]) -> bool:
        """Whether clients tune in the round of these settings; not where it has no number."""
        server_round = int(config.get(keys.SERVER_ROUND, 0))
        return server_round > 0 and (server_round - 1) % self.every == 0

    def starting(self, settings: ClientSettings, config: Mapping[str, Any]) -> ClientSettings:
        """``settings`` at the step size that the server sent, if it did.

        It takes the place of ``learning-rate``.

        Raises:
            ValueError: the learning rate decays from round to round.
        """
        if (decay := config.get("learning-rate-decay", 1.0)) != 1:
            raise ValueError(
                f"ClientSettings(learning-rate-decay={decay}): {_OWNER} sets the learning rate of "
                "every round. Use 1.0."
            )
        sent = config.get(keys.LEARNED_STEP_SIZE)
        return settings if sent is None else replace(settings, lr=float(sent))

    def check(self, settings: ClientSettings) -> None:
        """Raise unless the steps that are tuned would be the steps that are taken.

        Weight decay and a proximal term are gradients of what is added to the loss, and are part
        of both. Of the others nobody takes the derivative.

        Raises:
            ValueError: gradients are clipped, or the learning rate changes from step to step.
        """
        refused = {"max-grad-norm": settings.max_grad_norm}
        refused["learning-rate-exponent"] = getattr(settings, "lr_exponent", 0.0)
        for key, value in refused.items():
            if value:
                raise ValueError(
                    f"ClientSettings({key}={value}): {_OWNER} tunes plain steps of one size. "
                    "Use 0.0, or +sgd."
                )

    def tune(
        self,
        module: nn.Module,
        examples: Examples,
        settings: ClientSettings,
        loss_fn: Loss,
        *,
        rng: np.random.Generator,
        split: np.random.Generator,
    ) -> Tuned:
        """The step size of ``settings.num_steps`` local steps from the weights of ``module``.

        The module is in training mode. Neither its arrays nor PyTorch's random numbers change: the
        steps work on copies, and with the same random numbers in every meta-step.

        Where no trajectory ends at a finite loss, the step size is halved until one does.

        Args:
            module: at the received model.
            examples: of the client.
            settings: of the local steps; ``lr`` is the step size to begin with.
            loss_fn: a mean over the batch.
            rng: draws the batches.
            split: draws which rows are set aside.

        Raises:
            ValueError: no row can be set aside, or PyTorch has no derivatives for this model.
        """
        self.check(settings)
        if layer := next(filter(writes_to_weights, module.modules()), None):
            raise ValueError(f"{_OWNER}: {type(layer).__name__} with max_norm writes to weights.")
        inner, held = self._parts(examples, settings, split)
        with torch.random.fork_rng(devices=[]), _differentiable(module):
            steps = _LocalSteps(module, settings, loss_fn)
            batches = steps.numbered(list(batches_of(module, inner, settings, rng)), rng)
            ends = steps.numbered([held], rng) if held else batches
            end = mean_loss(steps.data_loss, ends)
            try:
                return self._search(steps, end, batches, settings.lr)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                raise ValueError(
                    f"{_OWNER}: this model or loss cannot be differentiated twice: "
                    f"{one_line(error)}. Use another local optimizer."
                ) from error

    def try_on(
        self, module: nn.Module, examples: Examples, settings: ClientSettings, loss_fn: Loss
    ) -> None:
        """Raise as ``tune`` does for a model or a loss that it cannot take."""
        rng = np.random.default_rng(0)
        short = replace(self, steps=1, by="training")  # a few rows cannot be parted
        short.tune(module, examples, settings, loss_fn, rng=rng, split=rng)

    def _search(
        self, steps: _LocalSteps, end: MetaLoss, batches: list[_Batch], first: float
    ) -> Tuned:
        def learned(step_size: float, num_meta_steps: int) -> LearnedStepSize:
            descent = MetaDescent(objective=self.objective, num_meta_steps=num_meta_steps)
            return learned_step_size(
                steps.loss,
                end,
                steps.start,
                batches,
                step_size,
                descent,
                max_norm=steps.max_norm,
                symmetric=steps.symmetric,
            )

        found = learned(first, self.steps)
        failed = halving = min(found.values) == math.inf
        for _ in range(_MOST_HALVINGS * halving):
            if min(found.values) < math.inf:
                break
            found = learned(float(found.step_size), 1)
        return Tuned(float(found.best()), failed)

    def _parts(
        self, examples: Examples, settings: ClientSettings, split: np.random.Generator
    ) -> tuple[Examples, tuple[Tensor, Tensor] | None]:
        """The rows of the steps, and those of the loss at the end; none for ``training``."""
        if self.by == "training":
            return examples, None
        count = len(examples)
        order = split.permutation(count)
        num_held = min(math.ceil(self.validation_fraction * count), count - 1)
        if num_held < 1:
            raise ValueError(
                f"{_OWNER}(by='validation'): the client has {count} training example(s), none of "
                "them can be set aside. Use by=training, or larger clients."
            )
        # No more than the steps see: the loss at the end should not cost more than they do.
        held = order[:num_held][: settings.num_steps * settings.batch_size]
        return _rows(examples, order[num_held:]), examples.take(torch.from_numpy(held))


class _LocalSteps:
    """The losses of a client's steps, as functions of the weights and a batch.

    Args:
        module: at the weights that the steps begin at.
        settings: what is added to the loss.
        loss_fn: a mean over the batch.
    """

    def __init__(self, module: nn.Module, settings: ClientSettings, loss_fn: Loss) -> None:
        module.train()
        self.module, self.settings, self.loss_fn = module, settings, loss_fn
        self.start: Weights = {
            name: p.detach() for name, p in module.named_parameters() if p.requires_grad
        }
        norm = math.sqrt(sum(float(w.double().square().sum()) for w in self.start.values()))
        self.max_norm = _LONGEST * max(1.0, norm)
        # Only what is known to stop no gradient; see ``model_meta_gradient``.
        self.symmetric = is_known(loss_fn) and all(
            is_torchs(m) and isinstance(m, _TRUE_GRADIENTS) for m in module.modules()
        )

    def numbered(
        self, batches: list[tuple[Tensor, Tensor]], rng: np.random.Generator
    ) -> list[_Batch]:
        """Each batch with a seed of its own, on the module's device."""
        device, layout = next(self.module.parameters()).device, layout_of(self.module)
        return [
            (int(rng.integers(2**63)), layout(inputs.to(device)), targets.to(device))
            for inputs, targets in batches
        ]

    def data_loss(self, weights: Weights, batch: _Batch) -> Tensor:
        """``loss_fn`` on a batch."""
        seed, inputs, targets = batch
        # The same masks of dropout for the same batch: otherwise two step sizes would differ by
        # luck. And copies of the buffers, which batch norm writes to.
        torch.default_generator.manual_seed(seed)
        buffers = {name: x.clone() for name, x in self.module.named_buffers()}
        outputs = functional_call(self.module, {**buffers, **weights}, (inputs,))
        if isinstance(outputs, Tensor):
            outputs = outputs.contiguous()
            if targets.is_floating_point():
                # Forward mode through mse_loss fails where the targets have no tangent at all.
                targets = targets + 0 * outputs.sum()
        return self.loss_fn(outputs, targets).squeeze()

    def loss(self, weights: Weights, batch: _Batch) -> Tensor:
        """That, ``λ/2 ‖w‖²`` and ``μ/2 ‖w - w₀‖²``: its gradient is what the optimizer sees."""
        total = self.data_loss(weights, batch)
        settings = self.settings
        for name, w in weights.items():
            if settings.weight_decay:
                total = total + settings.weight_decay / 2 * w.square().sum()
            if settings.proximal_mu:
                total = total + settings.proximal_mu / 2 * (w - self.start[name]).square().sum()
        return total


def _rows(examples: Examples, positions: NDArray[np.int64]) -> Examples:
    rows = examples.at(torch.from_numpy(positions))
    return Examples(examples.inputs, examples.targets, rows)


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Off with the fused kernels of recurrent layers, which have no forward mode."""
    if not any(isinstance(m, nn.RNNBase) for m in module.modules()):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a switch for Intel GPUs, which comes along
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
