"""The privacy budget of a client: what it plans to spend, and what it has spent so far."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedexp.privacy.accounting import (
    PrivacyFilter,
    PrivateStep,
    epsilon_of,
    multiplier_of,
    planned_multiplier,
)
from fedexp.records import from_record, records_of, to_record

_SPENT, _PLAN, _LAST = "private-budget", "private-plan", "private-direction"
_FIRST = 0.25  # of an equal part of the budget: the cost of the first step, where costs grow
_epsilon_of = lru_cache(maxsize=1024)(epsilon_of)


class Plan(NamedTuple):
    """How a budget is divided among steps.

    Attributes:
        epsilon: of the whole.
        delta: of the whole.
        num_steps: among which it is divided.
        sampling_rate: with which an example is drawn.
        search_share: of a step's budget that goes to a line search; 0 for none.
        growth: by which the cost of a step grows now and then; 1 for never.
    """

    epsilon: float
    delta: float
    num_steps: int
    sampling_rate: float
    search_share: float = 0.0
    growth: float = 1.0


class Budget:
    """The budget of one client, as its rounds go on.

    Equal steps are accounted by their privacy loss distribution, which needs a plan that is fixed
    before. Where steps grow, a filter at one Renyi order ``a`` adds up their divergences, at most
    ``B`` in all. Of ``T`` planned steps the first has the divergence ``c = B / 4T``; whenever two
    noisy gradients disagree, ``c`` becomes ``growth c``, if ``T - t`` steps of that cost still fit
    in what is left after ``t`` steps. So the budget lasts for all of them; some may be left over.

    Args:
        plan: the same in every round of a run.
        owner: the settings, for the message and to tell another plan by.
        state: of the client; what it spent before is there.

    Raises:
        ValueError: earlier rounds had another plan, so that neither bound would hold.

    Example:
        >>> from flwr.app import RecordDict
        >>> from fedexp.clients.private_budget import Budget, Plan
        >>> state, plan = RecordDict(), Plan(2.0, 1e-5, 100, 0.1)
        >>> budget = Budget(plan, "mine", state)
        >>> while step := budget.next_step():
        ...     budget.pay(step)
        >>> budget.save(state)
        >>> budget.steps, 1.99 < budget.epsilon <= 2, Budget(plan, "mine", state).next_step()
        (100, True, None)
    """

    def __init__(self, plan: Plan, owner: str, state: RecordDict) -> None:
        self._plan, self._text = plan, f"{owner}, sampling rate {plan.sampling_rate}"
        self.steps, self._spent, self._grown = 0, 0.0, 1.0
        last = records_of(state, ArrayRecord).get(_LAST)
        self._last: NDArray[Any] | None = from_record(last)["gradient"] if last else None
        kept = records_of(state, ConfigRecord).get(_PLAN)
        if kept and kept["plan"] != self._text:
            raise ValueError(
                f"{owner}: this client's budget was planned as {kept['plan']!r}, and a plan cannot "
                "change in a run. Keep the settings and the batch size."
            )
        if kept:
            spent = records_of(state, MetricRecord)[_SPENT]
            self.steps = cast(int, spent["steps"])
            self._spent, self._grown = cast(float, spent["rdp"]), cast(float, spent["grown"])
        epsilon, delta, num_steps, rate, share, growth = plan
        self._filter: PrivacyFilter | None = None
        if growth > 1:
            self._filter, _ = PrivacyFilter.planned(epsilon, delta, rate, num_steps, share)
            self._first = _FIRST * self._filter.bound / num_steps
        else:
            self._multiplier = planned_multiplier(epsilon, delta, rate, num_steps)

    def next_step(self) -> PrivateStep | None:
        """What the next step may release; None if all were taken, or the budget is spent."""
        if self.steps >= self._plan.num_steps:
            return None
        rate, share = self._plan.sampling_rate, self._plan.search_share
        if not self._filter:
            return PrivateStep.shared(rate, self._multiplier, share)
        order = self._filter.order
        multiplier = multiplier_of(self._grown * self._first, order, rate, share)
        step = PrivateStep.shared(rate, multiplier, share)
        return step if self._filter.admits(self._spent, step.rdp(order)) else None

    def pay(self, step: PrivateStep) -> None:
        """Count a step."""
        self.steps += 1
        self._spent += step.rdp(self._filter.order) if self._filter else 0.0

    def compare(self, gradient: NDArray[Any]) -> None:
        """Let every later step cost more if directions disagree and the rest of the budget lasts.

        They do where a noisy gradient and the one before point apart. The noise is in both, so
        this tells nothing more of the examples.
        """
        if not self._filter:
            return
        last, self._last = self._last, gradient
        if last is None or len(last) != len(gradient) or last @ gradient >= 0:
            return
        grown = self._grown * self._plan.growth
        rest = (self._plan.num_steps - self.steps) * grown * self._first
        if self._filter.admits(self._spent, rest):
            self._grown = grown

    @property
    def epsilon(self) -> float:
        """What was spent, at the plan's delta."""
        plan = self._plan
        if self._filter:
            return self._filter.epsilon_at(self._spent)
        step = PrivateStep(plan.sampling_rate, self._multiplier)
        grid = 1e-4 * max(1.0, plan.epsilon / 10)  # whose size in memory grows with epsilon
        return _epsilon_of(step, self.steps, plan.delta, grid)

    @property
    def left(self) -> float:
        """The share that is left."""
        spent = self._spent / self._filter.bound if self._filter else self.steps / self._plan[2]
        return max(0.0, 1.0 - spent)

    def save(self, state: RecordDict, *, with_gradient: bool = False) -> None:
        """Keep it for the client's next round.

        Args:
            state: of the client.
            with_gradient: keep the last noisy gradient too, as large as the model, for rounds in
                which it has no other to be compared with.
        """
        state[_PLAN] = ConfigRecord({"plan": self._text})
        state[_SPENT] = MetricRecord(
            {"steps": self.steps, "rdp": self._spent, "grown": self._grown}
        )
        if with_gradient and self._last is not None and self.next_step():
            state[_LAST] = to_record({"gradient": np.asarray(self._last, np.float32)})
        elif _LAST in state:
            del state[_LAST]
