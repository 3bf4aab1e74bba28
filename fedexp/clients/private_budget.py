"""The privacy budget of a client: what it plans to spend, and what it has spent so far."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedexp.privacy.accounting import PrivacyFilter, PrivateStep, epsilon_of, planned_multiplier
from fedexp.records import records_of

_SPENT, _PLAN = "private-budget", "private-plan"
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

    def grow(self) -> None:
        """Give more to every later step, if the plan says so, up to four times the first."""
        self._grown = min(_MOST_GROWN, self._grown * self._plan.growth)

    @property
    def epsilon(self) -> float:
        """What was spent, at the plan's delta."""
        plan = self._plan
        if self._filter:
            return self._filter.epsilon_at(self._spent)
        step = PrivateStep(plan.sampling_rate, self._multiplier)
        return _epsilon_of(step, self.steps, plan.delta)

    @property
    def left(self) -> float:
        """The share that is left."""
        spent = self._spent / self._filter.bound if self._filter else self.steps / self._plan[2]
        return max(0.0, 1.0 - spent)

    def save(self, state: RecordDict) -> None:
        """Keep it for the client's next round."""
        state[_PLAN] = ConfigRecord({"plan": self._text})
        state[_SPENT] = MetricRecord(
            {"steps": self.steps, "rdp": self._spent, "grown": self._grown}
        )
