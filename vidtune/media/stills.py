"""Images and folders of images, read as videos of one and of many frames."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from vidtune.media.errors import MediaError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


def is_still(path: str) -> bool:
    """An image file by its suffix, or any folder. Animated GIFs are videos."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES or os.path.isdir(path)


def list_images(path: str) -> list[str]:
    """The image itself, or the images of a folder sorted by name, numbers by value (``2.png`` before ``10.png``).

    Raises:
        MediaError: the folder holds no image.
    """
    if not os.path.isdir(path):
        return [path]
    names = [name for name in os.listdir(path) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    if not names:
        raise MediaError(path, "the folder holds no images")
    names.sort(
        key=lambda name: [
            (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)
        ]
    )
    return [os.path.join(path, name) for name in names]


def image_size(path: str) -> tuple[int, int]:
    """(height, width) from the header.

    Raises:
        MediaError: missing or not an image.
    """
    with _open(path) as image:
        return image.height, image.width


def read_stills(path: str, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(H, W, 3) uint8 RGB images at ``wanted``, each with its index.

    EXIF orientation is not applied, as in the originals.

    Raises:
        MediaError: missing, truncated or not an image, or an index beyond the last one.
    """
    files = list_images(path)
    for index in wanted:
        if index >= len(files):
            raise MediaError(path, f"frame {index} was asked for but there are {len(files)}")
        with _open(files[index]) as image:
            try:
                yield index, np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError) as error:
                raise MediaError(files[index], f"the image is damaged: {error}") from error


def _open(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise MediaError(path, "is not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "the file does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened: {error}"
        raise MediaError(path, reason) from error
