"""Image sets from their published files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import damaged, parsing, read_cifar, read_idx, read_leaf

EMNIST_CLASSES = {
    "balanced": 47,
    "byclass": 62,
    "bymerge": 47,
    "digits": 10,
    "letters": 26,
    "mnist": 10,
}


def mnist(data_dir: Path) -> Dataset:
    """MNIST. Its natural clients are the writers, if the folder ``qmnist/`` is beside ``mnist/``.

    QMNIST names the writer of each digit: Yadav & Bottou 2019, arXiv:1905.10498.
    """
    train, test = _idx_split(data_dir / "mnist", "", 10)
    path = data_dir / "qmnist" / "qmnist-train-labels-idx2-int.gz"
    if not path.exists():
        return Dataset(train, test, 10)
    table = read_idx(path, shape=(8,))
    # Column 0 is the label and column 2 the writer. The rows must be MNIST's, in MNIST's order.
    if not np.array_equal(table[:, 0], train[1].numpy()):
        raise damaged(path, "the labels of MNIST's training set in column 0", "others")
    writers, keys = np.unique(table[:, 2], return_inverse=True)
    return Dataset(train, test, 10, keys, tuple(map(str, writers)))


def fashion_mnist(data_dir: Path) -> Dataset:
    """Fashion-MNIST: clothing in the format of MNIST. Xiao et al. 2017, arXiv:1708.07747."""
    train, test = _idx_split(data_dir / "fashion-mnist", "", 10)
    return Dataset(train, test, 10)


def emnist(data_dir: Path, split: str) -> Dataset:
    """A split of EMNIST, turned upright. Cohen et al. 2017, arXiv:1702.05373."""
    num_classes = EMNIST_CLASSES[split]
    first = 1 if split == "letters" else 0
    # The letters are numbered from 1. EMNIST's images are stored with rows and columns exchanged.
    parts = _idx_split(data_dir / "emnist", f"emnist-{split}-", num_classes, first)
    train, test = ((x.mT.contiguous(), y) for x, y in parts)
    return Dataset(train, test, num_classes)


def cifar(data_dir: Path, num_classes: int) -> Dataset:
    """CIFAR-10 or CIFAR-100 from the python batches, each channel standardised."""
    if num_classes == 10:
        folder, label_key = data_dir / "cifar10" / "cifar-10-batches-py", "labels"
        train_files, test_file = [f"data_batch_{i}" for i in range(1, 6)], "test_batch"
    else:
        folder, label_key = data_dir / "cifar100" / "cifar-100-python", "fine_labels"
        train_files, test_file = ["train"], "test"
    batches = [read_cifar(folder / name, label_key) for name in [*train_files, test_file]]
    for _, found in batches:
        _check_classes(folder, found, num_classes)
    sizes = {len(labels) for _, labels in batches[:-1]}
    if len(sizes) > 1:
        raise damaged(folder, "training batches of one size", sorted(sizes))
    images, labels = (list(arrays) for arrays in zip(*batches, strict=True))
    x = torch.from_numpy(np.concatenate(images[:-1]).astype(np.float32)).div_(255)
    x_test = torch.from_numpy(images[-1].astype(np.float32)).div_(255)
    # The test images too are scaled by the mean and deviation of the training images.
    std, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
    for part in (x, x_test):
        part.sub_(mean).div_(std)
    y, y_test = torch.from_numpy(np.concatenate(labels[:-1])), torch.from_numpy(labels[-1])
    return Dataset((x, y), (x_test, y_test), num_classes)


def femnist(data_dir: Path) -> Dataset:
    """LEAF's FEMNIST: 62 characters; the natural clients are the writers. arXiv:1812.01097."""
    folder = data_dir / "femnist"
    train = read_leaf((folder / "train").glob("*.json"))
    x, y = _leaf_images(folder / "train", train)
    test = _leaf_images(folder / "test", read_leaf((folder / "test").glob("*.json")))
    keys = np.repeat(np.arange(len(train)), [len(labels) for _, labels in train.values()])
    return Dataset((x, y), test, 62, keys, tuple(train))


def _leaf_images(
    folder: Path, clients: dict[str, tuple[list[Any], list[Any]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    with parsing(folder, "images of 784 numbers and a class each"):
        x = np.concatenate([_pixels(folder, images) for images, _ in clients.values()])
        y = np.concatenate(
            [np.asarray(labels).reshape(len(images)) for images, labels in clients.values()]
        )
    if y.dtype.kind not in "iu":
        raise damaged(folder, "integers as classes", y.dtype)
    _check_classes(folder, y, 62)
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _pixels(folder: Path, rows: list[Any]) -> Array:
    x = np.asarray(rows)  # without a dtype, so that text and null do not become numbers
    if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise damaged(folder, "finite numbers as pixels", x.dtype)
    return x.astype(np.float32).reshape(-1, 1, 28, 28)


def _idx_split(
    folder: Path, prefix: str, num_classes: int, first: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Train and test pairs; EMNIST names its test files ``test``, MNIST ``t10k``."""
    return [
        _idx_pair(folder, f"{prefix}{part}", num_classes, first)
        for part in ("train", "test" if prefix else "t10k")
    ]


def _idx_pair(
    folder: Path, part: str, num_classes: int, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", shape=(28, 28))
    path = folder / f"{part}-labels-idx1-ubyte.gz"
    labels = read_idx(path).astype(np.int64) - first
    if len(labels) != len(images):
        raise damaged(path, f"{len(images)} labels, one per image", len(labels))
    _check_classes(path, labels, num_classes)
    x = torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)
    return x, torch.from_numpy(labels)


def _check_classes(path: Path, labels: Array, num_classes: int) -> None:
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "no label"
        raise damaged(path, f"{num_classes} classes", found)
