"""Every dataset by name: one table for the command line, the documentation and the tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from fedexp.datasets import images, synthetic, tables, text
from fedexp.datasets.dataset import Dataset, from_arrays
from fedexp.datasets.digits import digits
from fedexp.datasets.formats import read_npz
from fedexp.datasets.hub import from_hub


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Attributes:
        about: one line for listings.
        read: makes the dataset, from the run's seed if there are no files, else from the data
            folder.
        files: what ``read`` needs, as paths or patterns below the data folder.
        published: where to download them.
    """

    about: str
    read: Callable[..., Dataset]
    files: tuple[str, ...] = ()
    published: str = ""


def load(
    name: str,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    impute: str = "",
    standardize: bool = False,
    targets: str = "auto",
) -> Dataset:
    """Load a dataset by name. There is one copy per process, which all clients share.

    Args:
        name: a key of `SOURCES`, the path of an ``.npz`` file, or ``hub:owner/name`` (with
            ``:target:key`` columns if need be, see `from_hub`).
        data_dir: folder that holds one folder per dataset, for the sources that read files.
        seed: of the synthetic sources; all others are the same for every seed.
        impute: of a dataset of your own (``.npz`` or ``hub:``), as in `from_arrays`.
        standardize: likewise.
        targets: likewise.

    Raises:
        ValueError: unknown name, missing or damaged files, or an option for your own data with the
            name of a known dataset.

    Example:
        The 20 clients of FedExP's synthetic regression have 30 rows of 1,000 features each.

        >>> from fedexp.datasets import load
        >>> data = load("synthetic-regression")
        >>> data.train[0].shape, len(set(data.keys.tolist()))
        (torch.Size([600, 1000]), 20)
    """
    if name.endswith(".npz"):
        return read_npz_once(name, impute, standardize, targets)
    if name.startswith("hub:"):
        return _from_hub(name.removeprefix("hub:"), impute, standardize, targets)
    if name not in SOURCES:
        raise ValueError(
            f"load(name={name!r}): unknown dataset. Known: {', '.join(SOURCES)}, "
            "a path ending in .npz, or hub:owner/name."
        )
    if impute or standardize or targets != "auto":
        given = {"impute": impute, "standardize": standardize, "targets": targets}
        option = next(f"{key}={x!r}" for key, x in given.items() if x not in ("", False, "auto"))
        raise ValueError(
            f"load({option}): {name} needs no choice. It is for .npz and hub: datasets; leave it "
            "out."
        )
    if SOURCES[name].files:
        return _from_files(name, data_dir)
    return _drawn(name, seed)


@lru_cache(maxsize=4)
def _drawn(name: str, seed: int) -> Dataset:
    return SOURCES[name].read(seed)


@lru_cache(maxsize=4)
def _from_files(name: str, data_dir: str | None) -> Dataset:
    source = SOURCES[name]
    folder = Path(data_dir) if data_dir else None
    absent = [file for file in source.files if folder is None or not any(folder.glob(file))]
    if folder is None or absent:
        raise ValueError(
            f"load(name={name!r}, data_dir={data_dir!r}): the data folder lacks "
            f"{', '.join(absent)}. Published at {source.published}; name the folder with "
            "data_dir (--data-dir)."
        )
    return source.read(folder)


@lru_cache(maxsize=4)
def read_npz_once(path: str, impute: str, standardize: bool, targets: str) -> Dataset:
    """Read the dataset in an ``.npz`` file; there is one copy per process."""
    if not Path(path).exists():
        raise ValueError(f"load(name={path!r}): there is no such file.")
    arrays = read_npz(Path(path))
    names = ("x_train", "y_train", "x_test", "y_test")
    parts = (arrays[name] for name in names)
    return from_arrays(
        *parts,
        keys=arrays.get("keys"),
        impute=impute,
        standardize=standardize,
        targets=targets,
    )


@lru_cache(maxsize=4)
def _from_hub(spec: str, impute: str, standardize: bool, targets: str) -> Dataset:
    return from_hub(spec, impute=impute, standardize=standardize, targets=targets)


def _idx_files(folder: str, train: str, test: str) -> tuple[str, ...]:
    kinds = ("images-idx3", "labels-idx1")
    return tuple(f"{folder}/{part}-{kind}-ubyte.gz" for part in (train, test) for kind in kinds)


_UCI = "https://archive.ics.uci.edu/dataset"
_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html"
_LEAF = "https://github.com/TalwalkarLab/leaf (its preprocess.sh writes them)"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html (python version)"

SOURCES: dict[str, Source] = {
    "digits": Source("handwritten digits 8 x 8, comes with scikit-learn", digits),
    "synthetic-regression": Source(
        "FedExP's overparameterised regression, 20 clients", lambda s: synthetic.regression(seed=s)
    ),
    "synthetic-lr": Source(
        "LEAF's synthetic(1, 1), 30 clients", lambda s: synthetic.classification(seed=s)
    ),
    "mnist": Source(
        "handwritten digits, by writer with QMNIST's labels in qmnist/",
        images.mnist,
        _idx_files("mnist", "train", "t10k"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/; writers: "
        "https://github.com/facebookresearch/qmnist",
    ),
    "fashion-mnist": Source(
        "clothing",
        images.fashion_mnist,
        _idx_files("fashion-mnist", "train", "t10k"),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    **{
        f"emnist-{split}": Source(
            f"handwritten characters, {num_classes} classes",
            partial(images.emnist, split=split),
            _idx_files("emnist", f"emnist-{split}-train", f"emnist-{split}-test"),
            "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        )
        for split, num_classes in images.EMNIST_CLASSES.items()
    },
    "cifar10": Source(
        "small colour images, 10 classes",
        partial(images.cifar, num_classes=10),
        tuple(
            f"cifar10/cifar-10-batches-py/{name}"
            for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        ),
        _CIFAR,
    ),
    "cifar100": Source(
        "small colour images, 100 classes",
        partial(images.cifar, num_classes=100),
        ("cifar100/cifar-100-python/train", "cifar100/cifar-100-python/test"),
        _CIFAR,
    ),
    "femnist": Source(
        "handwritten characters by writer",
        images.femnist,
        ("femnist/train/*.json", "femnist/test/*.json"),
        _LEAF,
    ),
    "shakespeare": Source(
        "next character, by role of a play",
        text.shakespeare,
        ("shakespeare/*/full.html",),
        "http://shakespeare.mit.edu (each play's page 'Entire play in one page')",
    ),
    "tinyshakespeare": Source(
        "next character, by role",
        text.tiny_shakespeare,
        ("tinyshakespeare/input.txt",),
        "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)",
    ),
    "leaf-shakespeare": Source(
        "next character, by role, as LEAF cuts it",
        text.leaf_shakespeare,
        ("leaf-shakespeare/train/*.json", "leaf-shakespeare/test/*.json"),
        _LEAF,
    ),
    "heart-disease": Source(
        "patients by hospital",
        tables.heart_disease,
        tuple(f"heart-disease/processed.{name}.data" for name in tables.HOSPITALS),
        f"{_UCI}/45/heart+disease",
    ),
    "adult": Source(
        "census income by education",
        tables.adult,
        tuple(f"adult/{name}" for name in tables.ADULT_ROWS),
        f"{_UCI}/2/adult",
    ),
    "wisdm": Source(
        "activities by phone user",
        tables.wisdm,
        ("wisdm/WISDM_ar_v1.1_transformed.arff",),
        "https://www.cis.fordham.edu/wisdm/dataset.php",
    ),
    **{
        name: Source(
            "convex benchmark, two classes",
            partial(tables.libsvm, name=name),
            (f"libsvm/{name}", "libsvm/a9a.t") if name == "a9a" else (f"libsvm/{name}",),
            _LIBSVM,
        )
        for name in tables.LIBSVM_SHAPES
    },
}
