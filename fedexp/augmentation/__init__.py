"""Schedules of learning rate and augmentation, what is known of them, and the augmentations.

Schedules, conditions and exact recursions need NumPy alone; the augmentations need PyTorch.
"""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.augmentation.choice import Augmentation, augmentations_of, augmented
    from fedexp.augmentation.conditions import check_schedule, schedule_report
    from fedexp.augmentation.findings import ScheduleCheck
    from fedexp.augmentation.images import color_jitter, random_crop, random_flip
    from fedexp.augmentation.noise import batch_noise_step, noise_step
    from fedexp.augmentation.pairings import projected
    from fedexp.augmentation.projections import (
        ProjectionMoments,
        projection_fixed_point,
        projection_step,
    )
    from fedexp.augmentation.regression import (
        Moments,
        min_norm,
        ridge,
        unseen_component,
    )
    from fedexp.augmentation.schedules import PowerLaw, Schedule, constant
    from fedexp.augmentation.transforms import gaussian_noise, random_projection, rank_projection
    from fedexp.augmentation.unseen import unseen_factor
else:
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        Augmentation="fedexp.augmentation.choice",
        Moments="fedexp.augmentation.regression",
        PowerLaw="fedexp.augmentation.schedules",
        ProjectionMoments="fedexp.augmentation.projections",
        Schedule="fedexp.augmentation.schedules",
        ScheduleCheck="fedexp.augmentation.findings",
        augmentations_of="fedexp.augmentation.choice",
        augmented="fedexp.augmentation.choice",
        batch_noise_step="fedexp.augmentation.noise",
        check_schedule="fedexp.augmentation.conditions",
        color_jitter="fedexp.augmentation.images",
        constant="fedexp.augmentation.schedules",
        gaussian_noise="fedexp.augmentation.transforms",
        min_norm="fedexp.augmentation.regression",
        noise_step="fedexp.augmentation.noise",
        projected="fedexp.augmentation.pairings",
        projection_fixed_point="fedexp.augmentation.projections",
        projection_step="fedexp.augmentation.projections",
        random_crop="fedexp.augmentation.images",
        random_flip="fedexp.augmentation.images",
        random_projection="fedexp.augmentation.transforms",
        rank_projection="fedexp.augmentation.transforms",
        ridge="fedexp.augmentation.regression",
        schedule_report="fedexp.augmentation.conditions",
        unseen_component="fedexp.augmentation.regression",
        unseen_factor="fedexp.augmentation.unseen",
    )

__all__ = [
    "Augmentation",
    "Moments",
    "PowerLaw",
    "ProjectionMoments",
    "Schedule",
    "ScheduleCheck",
    "augmentations_of",
    "augmented",
    "batch_noise_step",
    "check_schedule",
    "color_jitter",
    "constant",
    "gaussian_noise",
    "min_norm",
    "noise_step",
    "projected",
    "projection_fixed_point",
    "projection_step",
    "random_crop",
    "random_flip",
    "random_projection",
    "rank_projection",
    "ridge",
    "schedule_report",
    "unseen_component",
    "unseen_factor",
]
