"""The privacy budget of a client: what it plans to spend, and what it has spent so far."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedexp.privacy.accounting import PrivacyFilter, PrivateStep, epsilon_of, planned_multiplier
from fedexp.records import from_record, records_of, to_record

_SPENT, _PLAN, _LAST = "private-budget", "private-plan", "private-direction"
_MOST_GROWN = 4.0  # times the budget of the first step
_epsilon_of = lru_cache(maxsize=1024)(epsilon_of)


class Plan(NamedTuple):
    """How a budget is divided among steps.

    Attributes:
        epsilon: of the whole.
        delta: of the whole.
        num_steps: among which it is divided.
        sampling_rate: with which an example is drawn.
        search_share: of a step's budget that goes to a line search; 0 for none.
        growth: by which the budget of a step grows now and then; 1 for never.
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
    before. Where steps grow, a filter at one Renyi order stops in time.

    Args:
        plan: the same in every round of a run.
        owner: the settings, for the message and to tell another plan by.
        state: of the client; what it spent before is there.

    Raises:
        ValueError: earlier rounds had another plan, so that neither bound would hold.

    Example:
        >>> state, plan = RecordDict(), Plan(1.0, 1e-5, 2, 0.1)
        >>> budget = Budget(plan, "mine", state)
        >>> while step := budget.next_step():
        ...     budget.pay(step)
        >>> budget.save(state)
        >>> budget.steps, 0.99 < budget.epsilon <= 1, Budget(plan, "mine", state).next_step()
        (2, True, None)
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
            self._filter, self._multiplier = PrivacyFilter.planned(
                epsilon, delta, rate, num_steps, share
            )
        else:
            self._multiplier = planned_multiplier(epsilon, delta, rate, num_steps)

    def next_step(self) -> PrivateStep | None:
        """What the next step may release; None if the budget does not cover it.

        Where it no longer covers a step that has grown, steps of the first size use up the rest.
        """
        if not self._filter:
            return self._step(1.0) if self.steps < self._plan.num_steps else None
        steps = map(self._step, (self._grown, 1.0))
        order = self._filter.order
        return next((x for x in steps if self._filter.admits(self._spent, x.rdp(order))), None)

    def _step(self, grown: float) -> PrivateStep:
        multiplier = self._multiplier / grown**0.5
        return PrivateStep.shared(self._plan.sampling_rate, multiplier, self._plan.search_share)

    def pay(self, step: PrivateStep) -> None:
        """Count a step."""
        self.steps += 1
        self._spent += step.rdp(self._filter.order) if self._filter else 0.0

    def compare(self, gradient: NDArray[Any]) -> None:
        """Give more to every later step, up to four times the first, if directions disagree.

        They do where a noisy gradient and the one before point apart. The noise is in both, so
        this tells nothing more of the examples.
        """
        if self._plan.growth == 1:
            return
        last, self._last = self._last, gradient
        if last is not None and len(last) == len(gradient) and last @ gradient < 0:
            self._grown = min(_MOST_GROWN, self._grown * self._plan.growth)

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
