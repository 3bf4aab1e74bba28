"""Models and data of ``experiments.hard_federations``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from experiments.server_steps import pooled
from fedexp.datasets import Dataset, load
from fedexp.models import CharLSTM, ResidualBlock


def batch_norm(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers with batch norm; for ``Config(model=...)``."""
    width = int(np.prod(shape))
    hidden = [[nn.Linear(n, 64), nn.BatchNorm1d(64), nn.ReLU()] for n in (width, 64)]
    return nn.Sequential(nn.Flatten(), *hidden[0], *hidden[1], nn.Linear(64, num_classes))


def narrow_resnet18(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """ResNet-18 with group norm, of an eighth of its width: 8 to 64 channels."""
    widths = [8, 8, 16, 16, 32, 32, 64, 64]
    blocks = [
        ResidualBlock(before, after, stride=1 if before == after else 2)
        for before, after in zip([8, *widths], widths, strict=False)
    ]
    stem = nn.Conv2d(shape[0], 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
    return nn.Sequential(*stem, *blocks, *head)


class ShortLSTM(nn.Module):
    """The next character from the twenty before it, by an LSTM of 64 units."""

    def __init__(self, num_letters: int) -> None:
        super().__init__()
        self.lstm = CharLSTM(num_letters, width=64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, length]`` characters to ``[n, num_letters]`` logits."""
        return self.lstm(x[:, -20:])  # type: ignore[no-any-return]


def short_lstm(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """For ``Config(model=...)``."""
    return ShortLSTM(num_classes)


def noisy_digits(data_dir: str) -> Dataset:
    """Digits of which a fifth of the training labels are drawn at random."""
    data, rng = load("digits"), np.random.default_rng(0)
    x, y = data.train[0], data.train[1].numpy()
    wrong = rng.random(len(y)) < 0.2
    labels = torch.from_numpy(np.where(wrong, rng.integers(0, 10, len(y)), y))
    return Dataset((x, labels), data.test, num_classes=10)


def small_fashion(data_dir: str) -> Dataset:
    """Fashion-MNIST at half its width and height, with 500 test images."""
    data = load("fashion-mnist", data_dir=data_dir)
    (x, y), (x_test, y_test) = data.train, data.test
    test = avg_pool2d(x_test[:500], 2), y_test[:500]
    return Dataset((avg_pool2d(x, 2), y), test, num_classes=10)


WRITTEN = {"noisy-digits": noisy_digits, "small-fashion": small_fashion}


def written(name: str, data_dir: str, folder: Path) -> str:
    """One of ``WRITTEN``, or ``pooled-mnist``, as an ``.npz`` file; other names as they are."""
    if name == "pooled-mnist":
        return pooled("mnist", data_dir, folder)
    if name not in WRITTEN:
        return name
    path = folder / f"{name}.npz"
    if not path.exists():
        data = WRITTEN[name](data_dir)
        x_train, y_train, x_test, y_test = (t.numpy() for t in (*data.train, *data.test))
        np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path)
