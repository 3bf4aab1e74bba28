"""Images of a user's own: a folder per class, in a folder per client if there are clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import parsing
from fedexp.datasets.rows import Rows
from fedexp.extras import need

_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits


def read_images(
    files: Sequence[Path], *, root: Path | None = None, by_client: bool = False, size: int = 0
) -> Rows:
    """Read images of ``[height, width]`` or ``[channels, height, width]`` uint8, and their classes.

    The images are grey if all files are grey, otherwise RGB. Classes are in the order of their
    names, or of their numbers if all names are numbers.

    Args:
        files: ``CLASS/NAME.png``, or ``CLIENT/CLASS/NAME.png``.
        root: the folder of all files, if it is known; there may be no other folders in it.
        by_client: whether the folder above that of the class is the client.
        size: images are scaled to this many pixels square; 0 leaves them as they are.

    Raises:
        ModuleNotFoundError: pillow is not installed.
        ValueError: no image, one in the wrong folder, or different sizes without ``size``.
    """
    need("PIL", "files")
    if root:
        _check_depth(files, root, by_client)
    labels = [file.absolute().parent.name for file in files]
    names = sorted(
        set(labels), key=lambda name: (int(name), name) if _are_numbers(labels) else name
    )
    images = [_image(file, size) for file in files]
    keys = np.array([file.absolute().parents[1].name for file in files]) if by_client else None
    return Rows(stacked_images(images, files), np.array(labels), keys, tuple(names))


def pixels(image: Any, size: int = 0) -> Array:
    """The pixels of an image as uint8: ``[height, width]`` if grey, else ``[height, width, 3]``.

    Raises:
        ValueError: more than 8 bits a pixel.
    """
    from PIL import ImageOps

    if image.mode in _DEEP:
        raise ValueError(f"an image of mode {image.mode}, of more than 8 bits. Save it with 8")
    # Cameras store a photo as the sensor was held, and the rotation beside it.
    image = ImageOps.exif_transpose(image)
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(image.resize((size, size)) if size else image)


def stacked_images(images: Sequence[Array], names: Sequence[object]) -> Array:
    """``[n, height, width]`` if all are grey, else ``[n, 3, height, width]``.

    Raises:
        ValueError: images have different sizes; it names the first two.
    """
    first = images[0].shape[:2]
    if odd := [i for i, image in enumerate(images) if image.shape[:2] != first]:
        (height, width), (h, w) = images[odd[0]].shape[:2], first
        raise ValueError(
            f"{names[odd[0]]}: is {width} x {height} pixels, {names[0]} is {w} x {h}. "
            "Scale all with image_size=32 (--image-size 32)."
        )
    if all(image.ndim == 2 for image in images):
        return np.stack(images)
    colour = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images]
    return np.moveaxis(np.stack(colour), -1, 1)


def _image(file: Path, size: int) -> Array:
    from PIL import Image

    with parsing(file, "an image of 8 bits", "Save it again as PNG."), Image.open(file) as image:
        return pixels(image, size)


def _check_depth(files: Sequence[Path], root: Path, by_client: bool) -> None:
    wanted = "CLIENT/CLASS/" if by_client else "CLASS/"
    wrong = [x for x in files if len(x.relative_to(root).parts) != wanted.count("/") + 1]
    if not wrong:
        return
    remedy = "Move it"
    if len(wrong) == len(files):
        flag = "client='folder' (--client-from folder)"
        remedy = f"Leave out {flag}" if by_client else f"Say {flag} if it lies in CLIENT/CLASS/"
    raise ValueError(f"{wrong[0]}: must lie in {root}/{wanted}, by its class. {remedy}.")


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)
