"""One local step on a few rows, and whose fault it is if it fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fedexp.clients.data import Examples
from fedexp.clients.local_optimizers import LocalOptimizer, OptimizerFn, plain_sgd
from fedexp.clients.loop import train
from fedexp.clients.losses import Loss
from fedexp.clients.named import named_optimizer
from fedexp.clients.settings import ClientSettings

_SETTINGS = "ClientSettings(", "Config("


@dataclass(frozen=True, eq=False)
class TrialStep:
    """A local step that may be taken several times; arguments as of ``try_model``."""

    module: nn.Module
    few: Examples
    optimizer: OptimizerFn
    settings: ClientSettings
    loss: Loss

    def take(self) -> None:
        """Take the step, and tune it if the optimizer does."""
        ours = self.optimizer if isinstance(self.optimizer, LocalOptimizer) else None
        if ours and ours.private:
            ours.private().try_on(self.module, self.few, self.loss)
            return
        made = self.optimizer(self.parameters, self.settings)
        rng = np.random.default_rng(0)
        train(self.module, self.few, self.settings, made, self.loss, rng)
        if ours and ours.tuning:
            ours.tuning().try_on(self.module, self.few, self.settings, self.loss)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """That learn."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def cause(self, owner: str) -> tuple[str, str, str]:
        """Who is to be named for a step that failed, what was tried, and what to do.

        The model, ``owner``, if plain SGD fails too; else the schedule or the optimizer.
        """
        optimizer, settings = self.optimizer, self.settings
        unscheduled = replace(self, settings=replace(settings, step_scheduler=""))
        if not replace(unscheduled, optimizer=plain_sgd)._works():
            return owner, "a local step", "Correct the model"
        scheduler = settings.step_scheduler
        if scheduler and unscheduled._works():
            return f"Config(local-scheduler={scheduler!r})", "a local step", "Choose other settings"
        line = getattr(optimizer, "line", "")
        name = f"optimizer={line or getattr(optimizer, '__name__', type(optimizer).__name__)}"
        if line == named_optimizer(settings.optimizer).line:
            name = f"Config(local-optimizer={settings.optimizer!r})"
        what = f"a local step with {line}" if line else "a local step"
        return name, what, "Choose other settings, or another local optimizer"

    def _works(self) -> bool:
        try:
            self.take()
        except Exception:  # of any kind: it may be the user's code
            return False
        return True


def names_a_setting(error: Exception) -> bool:
    """Whether an error is a line already that begins with the setting that is wrong."""
    return isinstance(error, ValueError) and str(error).startswith(_SETTINGS)
