"""What an experiment is made of, and the setting that all its arms share.

An experiment is a package, and each of its questions a module in it, a part, with

    CONFIGS     {"smoke": ..., "quick": ..., "full": ...}: frozen dataclasses, the part's settings
    PANELS      how many panels of the picture it draws
    arms(config) -> [dict, ...]              what is varied: an arm is run once per seed
    measure(arm, config, setting) -> [dict, ...]   rows of one arm under setting.seed
    tables(rows) -> [Table, ...]             from all rows of the part, a pandas.DataFrame
    claims(rows) -> [Claim, ...]             what they show, by thresholds
    draw(rows, axes)                         on as many axes as PANELS says

and, where needed, DTYPE = "float64" (what it asks wants that, whatever --dtype says), ALONE = True
(it measures time: nothing runs beside it) and work(arm, config), the relative length of a run. Its
docstring's first line is its question; what is claimed, how it is asked and what the answer cannot
say stand beside it in Markdown, in a file of its name. Tables, claims and pictures are made from
rows alone, so that a file of rows is all that has to be kept. A row's cells are numbers and texts,
NaN for what did not happen (a diverged loss); every run has a row with a gradient_difference, the
largest between our gradients and native autograd's.
"""

import functools
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pandas as pd
import torch

import manualgrad as mg
from experiments import native
from experiments.data import Dataset, load
from experiments.networks import Network
from experiments.statistics import Rows

BACKENDS: dict[str, ModuleType] = {"manualgrad": mg, "autograd": native}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Setting:
    """What all arms of a run share, but for the seed: of the split, the weights and the order."""

    seed: int = 0
    data: str = "digits"
    data_dir: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "manualgrad"

    @property
    def ops(self) -> ModuleType:
        """manualgrad, or what has its names in PyTorch's own operations."""
        return BACKENDS[self.backend]

    def dataset(self) -> Dataset:
        """The images, split by the seed, in the setting's dtype and on its device."""
        return _dataset(self.data, self.data_dir, self.seed, self.device, self.dtype)

    def network(self, sizes: Iterable[int], *args: Any, **kwargs: Any) -> Network:
        """A Network with these arguments, from the setting's seed, in its dtype, on its device."""
        kwargs = {"seed": self.seed, "dtype": DTYPES[self.dtype], "device": self.device, **kwargs}
        return Network(self.ops, tuple(sizes), *args, **kwargs)


@functools.lru_cache(maxsize=4)
def _dataset(name: str, directory: str | None, seed: int, device: str, dtype: str) -> Dataset:
    data = load(name, directory, seed)
    as_dtype = DTYPES[dtype]
    return Dataset(
        data.name,
        data.train_x.to(device, as_dtype),
        data.train_y.to(device),
        data.test_x.to(device, as_dtype),
        data.test_y.to(device),
    )


@dataclass(frozen=True)
class Experiment:
    """A package of parts under its name on the command line."""

    name: str
    parts: tuple[ModuleType, ...]
    about: str

    @classmethod
    def of(cls, package: ModuleType) -> "Experiment":
        return cls(package.__name__.split(".")[-1], package.PARTS, first_line(package))


def first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def text_of(part: ModuleType) -> str:
    """The part's claim, design and limits, in Markdown; "" for one without that file."""
    file = pathlib.Path(getattr(part, "__file__", None) or "none.py").with_suffix(".md")
    return file.read_text().strip() if file.exists() else ""


def part_name(part: ModuleType) -> str:
    return part.__name__.split(".")[-1]


def label(arm: dict[str, Any]) -> str:
    """An arm in one text, "batch=4 learning_rate=0.05": equal for equal arms."""
    return " ".join(f"{name}={value}" for name, value in arm.items())


def part_rows(part: ModuleType, rows: Rows) -> Rows:
    """The part's own rows; whole numbers are ints again, which other parts' blanks made floats."""
    own = rows[rows["part"] == part_name(part)].reset_index(drop=True)
    for name in own.columns:
        column = own[name]
        if pd.api.types.is_float_dtype(column) and len(own) and (column % 1 == 0).all():
            own[name] = column.astype("int64")
    return own
