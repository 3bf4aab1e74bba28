"""Metrics of one's own: of all outputs for a test set at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from logging import WARNING
from typing import Any, Self

import torch
from flwr.common.logger import log
from torch import Tensor

from fedexp import keys
from fedexp.clients.arguments import kebab, one_line
from fedexp.clients.losses import classes_for
from fedexp.extras import imported, need
from fedexp.specs import Spec, split_list

Metric = Callable[[Tensor, Tensor], Any]
"""``(outputs, targets) -> number``, both of all examples, on the CPU."""

_TAKEN = {"loss", "accuracy", keys.NUM_EXAMPLES}
_SAME = {"mae": "mean_absolute_error", "mse": "mean_squared_error"}
_SAME |= {"rmse": "root_mean_squared_error"}
_OVER_CLASSES = {"roc_auc": "roc_auc_ovr"} | {
    name: f"{name}_macro" for name in ("f1", "precision", "recall", "jaccard")
}


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics by name, each a function of all outputs and targets.

    Attributes:
        functions: by the name that they are reported under, without ``eval-`` and ``test-``.

    Raises:
        ValueError: a name that is taken, or something that is no function.

    Example:
        >>> import torch
        >>> from fedexp.clients import Metrics
        >>> metrics = Metrics({"worst": lambda outputs, targets: (outputs - targets).abs().max()})
        >>> metrics(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
        {'worst': 3.0}
    """

    functions: Mapping[str, Metric] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        for name, function in self.functions.items():
            if name in _TAKEN:
                raise ValueError(f"metrics({name}): is reported already. Choose another name.")
            if not (isinstance(name, str) and name and callable(function)):
                raise ValueError(
                    f"metrics({name!r}={type(function).__name__}): must be a function of outputs "
                    "and targets, by name. Write {'f1': f1}."
                )

    @classmethod
    def of(cls, choice: Metrics | Mapping[str, Metric] | str | None) -> Self | Metrics:
        """From functions by name, or from text: see ``named_metrics``."""
        if isinstance(choice, Metrics):
            return choice
        return named_metrics(choice) if isinstance(choice, str) else cls(dict(choice or {}))

    def __bool__(self) -> bool:
        return bool(self.functions)

    def __call__(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric that is a finite number; of the others, a warning the first time."""
        found = {}
        for name in self.functions:
            try:
                found[name] = self._one(name, outputs, targets)
            except ValueError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    log(WARNING, "Metric %r dropped: %s.", name, one_line(error.__cause__ or error))
        return found

    def check(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric.

        Raises:
            ValueError: one of them raises, or is no finite number.
        """
        return {name: self._one(name, outputs, targets) for name in self.functions}

    def _one(self, name: str, outputs: Tensor, targets: Tensor) -> float:
        try:
            value = float(self.functions[name](outputs, targets))
            if not math.isfinite(value):
                raise ValueError(f"it is {value}")
        except Exception as error:  # of any kind: it is the user's code
            raise ValueError(
                f"metrics({name}): fails on the test set: {one_line(error)}. Return a finite "
                f"number for outputs {_shape(outputs)} and targets {_shape(targets)}."
            ) from error
        return value


def _shape(outputs: Any) -> str:
    return str(list(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__


@lru_cache(maxsize=32)
def named_metrics(text: str) -> Metrics:
    """Metrics from ``name=module:function, module:other, f1``.

    Without a name of its own a function is reported under that which it has in its module. A name
    without a module is one of scikit-learn's scorers: ``f1``, ``balanced-accuracy``, ``roc-auc``,
    ``r2``, ``mae``, ... Over more than two classes ``f1``, ``precision`` and ``recall`` are means
    over the classes, and ``roc-auc`` that of each class against the rest.

    Raises:
        ValueError: a name that is given twice, taken, or unknown.
    """
    functions: dict[str, Metric] = {}
    for part in split_list(text):
        name, equals, rest = part.partition("=")
        if "(" in name or not equals:
            name, rest = "", part
        spec = Spec.of(rest)
        name = name.strip() or kebab(spec.name.rpartition(":")[2])
        if name in functions:
            raise ValueError(f"Config(metrics={text!r}): {name!r} is there twice. Leave one out.")
        functions[name] = _function(f"Config(metrics={text!r})", spec)
    return Metrics(functions)


def _function(owner: str, spec: Spec) -> Metric:
    if ":" in spec.name:
        if not callable(function := imported(owner, spec.name)):
            raise ValueError(
                f"{owner}: {spec.name} is no function of outputs and targets. Name one."
            )
        return partial(function, **spec.settings)
    need("sklearn", "simulation")
    from sklearn.metrics import get_scorer_names

    name = spec.name.replace("-", "_")
    name = _SAME.get(name, name)
    if not {name, f"neg_{name}"} & set(get_scorer_names()) or spec.settings:
        raise ValueError(
            f"{owner}: {str(spec)!r} is no scorer of scikit-learn. Use one of f1, "
            "balanced-accuracy, roc-auc, r2, mae, ..., or `module:function` of your own."
        )
    return partial(_scored, name)


def _scored(name: str, outputs: Tensor, targets: Tensor) -> float:
    """What scikit-learn's scorer of that name makes of an estimator with these outputs."""
    from sklearn.metrics import get_scorer, get_scorer_names

    classes = classes_for(outputs, targets)
    if classes is not None:
        outputs = outputs.movedim(1, -1).flatten(0, -2)
        name = _OVER_CLASSES.get(name, name) if outputs.shape[1] > 2 else name
    wanted = targets if classes is None else classes.flatten()
    sign = 1 if name in get_scorer_names() else -1
    scorer = get_scorer(name if sign > 0 else f"neg_{name}")
    estimator = _estimator(classes is not None, outputs.shape[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a class is missing; the value is NaN then
        return float(sign * scorer(estimator, outputs.numpy(), wanted.numpy()))


def _estimator(classifies: bool, num_outputs: int) -> Any:
    """A fitted estimator of scikit-learn whose inputs are the outputs of a model."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    class Classes(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = torch.arange(num_outputs).numpy()

        def predict(self, outputs: Any) -> Any:
            return outputs.argmax(1)

        def predict_proba(self, outputs: Any) -> Any:
            return torch.from_numpy(outputs).double().softmax(1).numpy()

    class Values(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        def predict(self, outputs: Any) -> Any:
            return outputs

    return Classes() if classifies else Values()
