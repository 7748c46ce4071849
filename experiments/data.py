"""The images that the experiments train on, split and standardised."""

import gzip
import math
import pathlib
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08  # IDX's type code; the only one that the MNIST family uses


class DataError(Exception):
    """A data set that cannot be read; its text is one line for the user."""


@dataclass(frozen=True)
class Dataset:
    """Images as rows (M, pixels), float64, standardised by the training set; labels (M,) int64."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.train_y)} training and {len(self.test_y)} test images of "
            f"{self.train_x.shape[1]} pixels"
        )


def load(name: str, directory: str | None = None, seed: int = 0) -> Dataset:
    """The data set called name: "digits" (in scikit-learn's wheel) or "mnist" (IDX files)."""
    if name == "digits":
        return digits(seed)
    if name == "mnist":
        if directory is None:
            raise DataError("--data mnist needs --data-dir DIR, where the IDX files are")
        return mnist(pathlib.Path(directory), seed)
    raise DataError(f"unknown data set {name!r}; there are digits and mnist")


def digits(seed: int = 0) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, Alpaydin 1998), split 1,024 to 773."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split("digits", images, labels, train=1024, seed=seed)


def mnist(directory: pathlib.Path, seed: int = 0) -> Dataset:
    """MNIST, or any set in its four IDX files; of the two t10k files alone, 8,192 train.

    Raises DataError for a missing, truncated or mislabelled file.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; --data-dir names where the IDX files are")
    images, labels = _pair(directory, "t10k")
    if _find(directory, "train-images-idx3-ubyte") or _find(directory, "train-labels-idx1-ubyte"):
        train_images, train_labels = _pair(directory, "train")
        if train_images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"{directory}: training images are {train_images.shape[1:]} pixels but test images "
                f"{images.shape[1:]}; they are not of one data set"
            )
        return _standardised("mnist", train_images, train_labels, images, labels)
    train = len(labels) * 8192 // 10000
    return _split("mnist, test files only", images, labels, train=train, seed=seed)


def _split(name: str, images, labels, *, train: int, seed: int) -> Dataset:
    order = np.random.default_rng(seed).permutation(len(labels))
    first, rest = order[:train], order[train:]
    return _standardised(name, images[first], labels[first], images[rest], labels[rest])


def _standardised(name: str, train_images, train_y, test_images, test_y) -> Dataset:
    train_x, test_x = (
        torch.from_numpy(images.reshape(len(images), -1).astype(np.float64))
        for images in (train_images, test_images)
    )
    mean, std = train_x.mean(), train_x.std()
    if not std > 0:  # NaN where there are no pixels
        raise DataError(f"{name}: the training images do not differ from each other")
    labels = (torch.from_numpy(y.astype(np.int64)) for y in (train_y, test_y))
    train_y, test_y = labels
    return Dataset(name, (train_x - mean) / std, train_y, (test_x - mean) / std, test_y)


def _pair(directory: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(directory, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(directory, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{directory}: {len(images)} {part} images but {len(labels)} labels")
    if len(images) < 2:
        raise DataError(f"{directory}: {len(images)} {part} images; there must be more")
    if labels.max() > 9:
        raise DataError(f"{directory}: a {part} label is {labels.max()}; the classes are 0 to 9")
    return images, labels


def _find(directory: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file, in either of its usual spellings, compressed or not."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (directory / spelling, directory / f"{spelling}.gz"):
            if path.is_file():
                return path
    return None


def read_idx(directory: pathlib.Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, a type code, the sizes (big-endian), the data.

    Raises DataError if it is missing, truncated, too long, or of another kind.
    """
    path = _find(directory, name)
    if path is None:
        raise DataError(f"{directory / name} (or .gz) is missing")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} is truncated: {len(content)} bytes, its header alone is {start}")
    magic = tuple(content[:4])
    if magic != (0, 0, UNSIGNED_BYTE, dimensions):
        raise DataError(
            f"{path} is mislabelled: it begins with {magic}, an IDX file of bytes in {dimensions} "
            f"dimensions begins with {(0, 0, UNSIGNED_BYTE, dimensions)}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - start != math.prod(shape):
        word = "truncated" if len(content) - start < math.prod(shape) else "too long"
        raise DataError(
            f"{path} is {word}: {len(content) - start} bytes of data, {shape} needs "
            f"{math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
