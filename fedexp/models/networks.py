"""The models: functions of the shape of an input and the number of outputs.

``num_outputs`` is the number of classes, or 0 for a regression, whose model returns ``[batch]``.
All models run under ``torch.func.functional_call``, and all but the LSTM under ``vmap`` over the
parameters (with ``randomness="different"`` for those with dropout). No model keeps a running
statistic, so that there is nothing but parameters to average.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Shape = tuple[int, ...]


def linear(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Logistic regression, or linear regression without intercept. All parameters start at zero.

    Args:
        input_shape: of one input.
        num_outputs: number of classes, or 0.

    Example:
        28 · 28 weights and a bias for each of ten classes.

        >>> from fedexp.models import linear
        >>> sum(p.numel() for p in linear((1, 28, 28), 10).parameters())
        7850
    """
    size = math.prod(input_shape)
    layer = nn.Linear(size, num_outputs or 1, bias=num_outputs > 0)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Flatten(), layer, *_squeeze(num_outputs))


def mlp(input_shape: Shape, num_outputs: int, *, width: int = 128) -> nn.Module:
    """One hidden layer of ``width`` rectified units.

    Args:
        input_shape: of one input.
        num_outputs: number of classes, or 0.
        width: units of the hidden layer.

    Example:
        ``4 · 8 + 8`` parameters in the hidden layer, ``8 · 3 + 3`` in the last one.

        >>> from fedexp.models import mlp
        >>> sum(p.numel() for p in mlp((4,), 3, width=8).parameters())
        67
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def cnn(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Two 3 x 3 convolutions (16, 32 channels), each followed by pooling, and a linear layer.

    Args:
        input_shape: of one input, ``[channels, height, width]``.
        num_outputs: number of classes, or 0.

    Raises:
        ValueError: the inputs are no images, or smaller than 4 x 4.

    Example:
        >>> import torch
        >>> from fedexp.models import cnn
        >>> cnn((1, 8, 8), 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    channels, height, width = _image("cnn", input_shape, smallest=4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_outputs or 1),
        *_squeeze(num_outputs),
    )


def emnist_cnn(input_shape: Shape, num_outputs: int) -> nn.Module:
    """The CNN of FedExP's EMNIST experiment: 1.2 million parameters at 28 x 28.

    3 x 3 convolutions (32, 64), pooling, dropout ¼, 128 units, dropout ½. It is that of
    Reddi et al. 2021, arXiv:2003.00295, table 3.

    Args:
        input_shape: of one input, ``[channels, height, width]``.
        num_outputs: number of classes, or 0.

    Raises:
        ValueError: the inputs are no images, or smaller than 6 x 6.

    Example:
        >>> from fedexp.models import emnist_cnn
        >>> sum(p.numel() for p in emnist_cnn((1, 28, 28), 62).parameters())
        1206590
    """
    channels, height, width = _image("emnist-cnn", input_shape, smallest=6)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def resnet18(input_shape: Shape, num_outputs: int) -> nn.Module:
    """ResNet-18 for small images, with group norm of two groups in place of batch norm.

    It is that of He et al. 2016, arXiv:1512.03385, in the form for CIFAR: the first convolution is
    3 x 3, and no pooling follows it. Group norm is used as by Hsieh et al. 2020, arXiv:1910.00189,
    and in the experiments of FedExP.

    Args:
        input_shape: of one input, ``[channels, height, width]``.
        num_outputs: number of classes, or 0.

    Raises:
        ValueError: the inputs are no images, or smaller than 8 x 8.

    Example:
        >>> from fedexp.models import resnet18
        >>> sum(p.numel() for p in resnet18((3, 32, 32), 10).parameters())
        11173962
    """
    channels, _, _ = _image("resnet18", input_shape, smallest=8)
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    # A block that widens its channels halves the image; the first widths are equal, 64 to 64.
    blocks = [
        ResidualBlock(before, after, stride=1 if before == after else 2)
        for before, after in zip([64, *widths], widths, strict=False)
    ]
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.GroupNorm(2, 64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def char_lstm(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Predict the next character of contexts ``[batch, length]``.

    Args:
        input_shape: of one context; it is not used, since an LSTM reads contexts of any length.
        num_outputs: size of the alphabet, whose letters are both inputs and classes.

    Example:
        >>> import torch
        >>> from fedexp.models import char_lstm
        >>> char_lstm((80,), 30)(torch.zeros(2, 80, dtype=torch.uint8)).shape
        torch.Size([2, 30])
    """
    return CharLSTM(num_outputs)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to their input.

    The input is projected by a 1 x 1 convolution if the number of channels changes.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution; 2 halves height and width.

    Example:
        >>> import torch
        >>> from fedexp.models import ResidualBlock
        >>> ResidualBlock(4, 8, stride=2)(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    plain_forward = True  # see fedexp.clients.known.has_plain_forward

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(2, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(2, after),
        )
        self.shortcut = nn.Sequential()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(2, after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``[batch, before, height, width]`` to ``after`` channels."""
        out: torch.Tensor = functional.relu(self.path(x) + self.shortcut(x))
        return out


class CharLSTM(nn.Module):
    """An embedding of 8 numbers, one LSTM layer, and logits from its last state.

    Args:
        num_letters: size of the alphabet.
        width: size of the LSTM's state.

    Example:
        >>> import torch
        >>> from fedexp.models import CharLSTM
        >>> CharLSTM(5, width=3)(torch.tensor([[0, 4, 2]])).shape
        torch.Size([1, 5])
    """

    def __init__(self, num_letters: int, *, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_letters, 8)
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, num_letters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens ``[batch, length]`` to logits ``[batch, num_letters]``."""
        states, _ = self.lstm(self.embedding(tokens.long()))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "emnist-cnn": emnist_cnn,
    "resnet18": resnet18,
    "char-lstm": char_lstm,
}


def _image(owner: str, shape: Shape, *, smallest: int) -> Shape:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"{owner}(input_shape={shape}): must be images [channels, height, width], at least "
            f"{smallest} x {smallest}. Use `mlp` or `linear`."
        )
    return shape


def _squeeze(num_outputs: int) -> list[nn.Module]:
    return [] if num_outputs else [nn.Flatten(0)]
