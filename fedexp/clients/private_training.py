"""Local training under differential privacy: DP-SGD, and a private line search.

What is protected is one example of one client, against the server and all who see the models. A
step releases the sum of the clipped gradients of a Poisson sample with Gaussian noise, divided by
the expected number ``q n`` of examples and never by the number drawn; a line search releases its
outcome besides. Chen & Lee 2020 (arXiv:2008.07978) search so, and give a step more budget where
consecutive gradients disagree; beyond their abstract this is of our own design.

What a client reports of its examples is only what these steps release: no training loss. The number
of its examples is not protected, and neither are its test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from flwr.app import Context
from torch import Tensor, nn

from fedexp import keys
from fedexp.clients.data import Examples
from fedexp.clients.losses import Loss
from fedexp.clients.module import layout_of
from fedexp.clients.private_budget import Budget, Plan
from fedexp.clients.private_gradients import Floats, PerExample
from fedexp.clients.settings import ClientSettings
from fedexp.privacy.accounting import PrivacyFilter, PrivateStep
from fedexp.privacy.line_search import ArmijoSearch
from fedexp.privacy.mechanisms import noisy_sum
from fedexp.privacy.noise import Noise, noise_of

_LEAST_DELTA, _MOST_STEPS, _MOST_CLIP = 1e-10, 1_000_000, 1e15  # the accountant's, and float's


class PrivateRound(NamedTuple):
    """What came of a client's round.

    Attributes:
        epsilon: spent since the first round, at the plan's delta.
        steps: taken since the first round.
        left: the share of the budget that is left: of the steps, or of the Renyi divergence.
        is_spent: whether no further step fits.
        rate: the mean step of this round; 0 if there was none.
    """

    epsilon: float
    steps: int
    left: float
    is_spent: bool
    rate: float

    def metrics(self) -> dict[str, float]:
        """What the client reports."""
        return {
            keys.EPSILON_SPENT: self.epsilon,
            keys.PRIVATE_STEPS: self.steps,
            keys.BUDGET_LEFT: self.left,
            keys.BUDGET_IS_SPENT: float(self.is_spent),
        }


@dataclass(frozen=True)
class PrivateSGD:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133): the settings of ``dp-sgd``.

    ``w ← w - η (Σ clip(gᵢ) + s C N(0, I)) / (q n)`` over a Poisson sample with ``q = batch-size /
    n``. The noise ``s`` is the least at which ``steps`` steps cost ``epsilon``. The budget is that
    of a client over all rounds of a run; when it is spent, the client returns models as they came.

    Attributes:
        epsilon: ``ε`` of the whole budget: for one example, against whoever sees the models.
        delta: ``δ``; well below one over the number of examples.
        steps: that the budget is divided among.
        clip: ``C``, the norm to which the gradient of an example is clipped.
        noise_seed: fixes the noise, for tests and figures alone; -1 for noise from the system.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> from fedexp.clients import PrivateSGD
        >>> PrivateSGD(epsilon=0.8, steps=100).plan(sampling_rate=0.1).epsilon
        0.8
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    steps: int = 1000
    clip: float = 1.0
    noise_seed: int = -1

    name: ClassVar[str] = "dp-sgd"

    def __post_init__(self) -> None:
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "epsilon": (lambda x: 0 < x < float("inf"), "> 0"),
            "delta": (lambda x: _LEAST_DELTA <= x < 1, f"between {_LEAST_DELTA:g} and 1"),
            "steps": (
                lambda x: isinstance(x, int) and 1 <= x <= _MOST_STEPS,
                f"a whole number of at least 1, at most {_MOST_STEPS}",
            ),
            "clip": (lambda x: 0 < x <= _MOST_CLIP, f"> 0 and at most {_MOST_CLIP:g}"),
            "noise_seed": (
                lambda x: isinstance(x, int) and x >= -1,
                "a whole number, or -1 for none",
            ),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
                key = name.replace("_", "-")
                raise ValueError(
                    f"{self.name}({key}={getattr(self, name)!r}): must be {rule}. "
                    f"The default is {type(self).__dataclass_fields__[name].default!r}."
                )

    def check(self, settings: ClientSettings) -> None:
        """Raise for what would fail at every client, before one of them is asked.

        Raises:
            ModuleNotFoundError: ``dp-accounting`` is not installed.
            ValueError: settings of the clients that private steps do not follow, or a budget with
                which no step can be planned.
        """
        PrivacyFilter.possible(self.epsilon, self.delta)
        for key, value in {
            "weight-decay": settings.weight_decay,
            "max-grad-norm": settings.max_grad_norm,
            "proximal-mu": settings.proximal_mu,
            "learning-rate-exponent": settings.lr_exponent,
            "augmentation": settings.augmentation,
        }.items():
            if value:
                raise ValueError(
                    f"ClientSettings({key}={value}): {self.name} has none. Leave it out."
                )

    def warn_of_seed(self) -> None:
        """Warn of noise that a seed fixes, as clients in other processes do unheard."""
        if self.noise_seed >= 0:
            noise_of(self.noise_seed)

    def plan(self, sampling_rate: float) -> Plan:
        """How the budget is divided."""
        return Plan(self.epsilon, self.delta, self.steps, sampling_rate)

    def train(
        self,
        module: nn.Module,
        examples: Examples,
        settings: ClientSettings,
        loss: Loss,
        context: Context,
    ) -> PrivateRound:
        """Take the local steps of a round, as far as the budget goes; it is kept in ``context``.

        Args:
            module: at the received model; is trained in place.
            examples: of the client.
            settings: of the clients; ``batch_size`` is the expected size of a sample.
            loss: a mean over a batch.
            context: of the client.

        Raises:
            ValueError: a layer mixes examples, or the plan is not that of earlier rounds.
        """
        self.check(settings)
        if not len(examples):
            raise ValueError("the client has no training examples. Give it some, or no partition.")
        module.train()
        model = PerExample(module, loss)
        rate = min(1.0, settings.batch_size / len(examples))
        budget = Budget(self.plan(rate), repr(self), context.state)
        partition = int(context.node_config.get(keys.PARTITION_ID, context.node_id))
        seed = None if self.noise_seed < 0 else self.noise_seed
        noise = noise_of(seed, partition, budget.steps)
        taken: list[float] = []
        for _ in range(settings.num_steps):
            if (step := budget.next_step()) is None:
                break
            # Each example by a draw of its own (Poisson): the accountant's amplification holds for
            # that, and not for batches of one size.
            drawn = np.flatnonzero(noise.uniform(len(examples)) < rate)
            batch = _batch(module, examples, drawn)
            size = rate * len(examples)  # expected, not drawn: how many were is no public number
            total = noisy_sum(
                model.sum_of_clipped(*batch, self.clip), self.clip, step.noise_multiplier, noise
            )
            gradient = total / size
            budget.pay(step)  # before anything of it is used
            eta = self.step_size(model, batch, gradient, size, step, settings.lr, noise)
            model.move(eta * gradient)
            taken.append(eta)
            budget.compare(gradient)
        budget.save(context.state, with_gradient=settings.num_steps == 1)
        mean = sum(taken) / len(taken) if taken else 0.0
        left, is_spent = budget.left, budget.next_step() is None
        return PrivateRound(budget.epsilon, budget.steps, left, is_spent, mean)

    def step_size(
        self,
        model: PerExample,
        batch: tuple[Tensor, Tensor],
        gradient: Floats,
        size: float,
        step: PrivateStep,
        lr: float,
        noise: Noise,
    ) -> float:
        """``η`` of one step: the learning rate."""
        return lr

    def try_on(self, module: nn.Module, examples: Examples, loss: Loss) -> None:
        """Take gradients of single examples; raises what is wrong with the model or the loss."""
        rows = np.arange(len(examples))
        PerExample(module, loss).sum_of_clipped(*_batch(module, examples, rows), self.clip)


@dataclass(frozen=True)
class PrivateLineSearch(PrivateSGD):
    """Private steps whose size is found by a private search: settings of ``private-line-search``.

    See `fedexp.privacy.line_search.ArmijoSearch` for the test. When two consecutive noisy gradients
    of a client point apart (their inner product is negative), the cost ``c`` of all later steps
    grows: ``c ← growth c``, if ``(T - t) growth c <= B - spent``, so that the rest of the budget
    lasts for what is left of the ``T = steps``. Costs are Renyi divergences of one order that is
    fixed before, ``B`` is all that may be spent, and ``c = B / 4T`` at first. How much less noise a
    cost buys is found by bisection. In rounds of one step the client's state holds the last
    gradient, as large as the model.

    Attributes:
        search_share: the share of a step's budget that goes to the search, in (0, 1).
        growth: the factor by which the cost of a step grows; 1 for no adaptation, where all steps
            cost the same.
        first_step: the largest step that is tried.
        shrink: from one that is tried to the next.
        decrease: ``c`` of Armijo's test.
        tries: how many are tried at most.

    Example:
        >>> from fedexp.clients import PrivateLineSearch
        >>> PrivateLineSearch(epsilon=0.8, growth=1.0).search.first
        2.0
    """

    search_share: float = 0.2
    growth: float = 1.02
    first_step: float = 2.0
    shrink: float = 0.5
    decrease: float = 0.1
    tries: int = 8

    name: ClassVar[str] = "private-line-search"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.search_share < 1 and 1 <= self.growth < float("inf")):
            raise ValueError(
                f"{self.name}(search-share={self.search_share}, growth={self.growth}): the share "
                "must be between 0 and 1, the growth at least 1."
            )
        self.search  # noqa: B018 -- what is wrong with it shows now

    @property
    def search(self) -> ArmijoSearch:
        """What is tried."""
        return ArmijoSearch(self.first_step, self.shrink, self.decrease, self.tries)

    def plan(self, sampling_rate: float) -> Plan:
        """How the budget is divided."""
        base = super().plan(sampling_rate)
        return Plan(*base[:4], self.search_share, self.growth)

    def step_size(
        self,
        model: PerExample,
        batch: tuple[Tensor, Tensor],
        gradient: Floats,
        size: float,
        step: PrivateStep,
        lr: float,
        noise: Noise,
    ) -> float:
        """``η`` of one step: the first that decreases the loss enough."""
        norm = float(np.linalg.norm(gradient))
        if not norm:
            return self.first_step
        # Of the square of the gradient that is seen, this much is expected to be noise.
        added = len(gradient) * (step.noise_multiplier * self.clip / size) ** 2
        here = model.losses(*batch)
        return self.search(
            lambda eta: here - model.losses(*batch, eta * gradient),
            max(0.0, norm**2 - added),
            size,
            self.clip * norm,
            2 / step.search_epsilon,
            noise,
        )


def private_settings(kind: type[PrivateSGD]) -> Mapping[str, Any]:
    """The settings of a kind of private training, with their defaults."""
    return {x.name: x.default for x in fields(kind)}


def _batch(
    module: nn.Module, examples: Examples, positions: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[Tensor, Tensor]:
    device, layout = next(module.parameters()).device, layout_of(module)
    inputs, targets = examples.take(torch.from_numpy(positions))
    return layout(inputs.to(device)), targets.to(device)
