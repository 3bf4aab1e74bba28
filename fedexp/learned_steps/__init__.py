"""Step sizes that are tuned on where they lead; they need PyTorch and nothing of fedexp."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.learned_steps.descent import (
        LearnedStepSize,
        MetaDescent,
        descend,
        learned_step_size,
    )
    from fedexp.learned_steps.linear import closed_form, meta_gradient
    from fedexp.learned_steps.models import loss_of, mean_loss, model_meta_gradient
    from fedexp.learned_steps.objectives import MetaGradient
    from fedexp.learned_steps.oracle import expected_errors, marchenko_pastur
    from fedexp.learned_steps.problems import LeastSquares, Quadratic
else:
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        LearnedStepSize="fedexp.learned_steps.descent",
        LeastSquares="fedexp.learned_steps.problems",
        MetaDescent="fedexp.learned_steps.descent",
        MetaGradient="fedexp.learned_steps.objectives",
        Quadratic="fedexp.learned_steps.problems",
        closed_form="fedexp.learned_steps.linear",
        descend="fedexp.learned_steps.descent",
        expected_errors="fedexp.learned_steps.oracle",
        learned_step_size="fedexp.learned_steps.descent",
        loss_of="fedexp.learned_steps.models",
        marchenko_pastur="fedexp.learned_steps.oracle",
        mean_loss="fedexp.learned_steps.models",
        meta_gradient="fedexp.learned_steps.linear",
        model_meta_gradient="fedexp.learned_steps.models",
    )

__all__ = [
    "LearnedStepSize",
    "LeastSquares",
    "MetaDescent",
    "MetaGradient",
    "Quadratic",
    "closed_form",
    "descend",
    "expected_errors",
    "learned_step_size",
    "loss_of",
    "marchenko_pastur",
    "mean_loss",
    "meta_gradient",
    "model_meta_gradient",
]
