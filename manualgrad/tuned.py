"""What manualgrad.tune measured on a GPU, kept as JSON: read once per process, written whole.

One file per device, torch and triton version. A file that is damaged, or that another machine
wrote, is ignored with one warning.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from manualgrad.files import write_json

FORMAT = 1
BACKENDS = ("aten", "cublaslt", "hybrid", "triton")


def folder() -> pathlib.Path:
    """$MANUALGRAD_CACHE, or manualgrad in the user's cache folder."""
    own = os.environ.get("MANUALGRAD_CACHE")
    if own:
        return pathlib.Path(os.path.expanduser(own))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # a user without a home
        base = tempfile.gettempdir()
    return pathlib.Path(base) / "manualgrad"


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def identity(index: int) -> dict[str, str]:
    """Of the machine whose measurements hold here."""
    return {
        "device": torch.cuda.get_device_name(index),
        "torch": torch.__version__,
        "triton": triton_version(),
    }


def path(machine: dict[str, str]) -> pathlib.Path:
    name = "-".join((machine["device"], "torch", machine["torch"], "triton", machine["triton"]))
    return folder() / (re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".json")


@functools.cache
def choices(index: int) -> dict[str, dict[str, Any]]:
    """Problem.key -> {"backend", "tile", "milliseconds"} as measured on GPU number index."""
    return read(identity(index))


def read(machine: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The choices kept for a machine; {} with a warning if its file cannot be used."""
    file = path(machine)
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(file, f"it cannot be read ({error})")
    try:
        kept = json.loads(text)
        if kept["format"] != FORMAT:
            return _ignored(file, f"its format is {kept['format']}, not {FORMAT}")
        if kept["machine"] != machine:
            return _ignored(file, f"it was measured on {kept['machine']}, and this is {machine}")
        for choice in kept["choices"].values():
            tile = choice.get("tile")
            if choice["backend"] not in BACKENDS or not isinstance(tile, (str, type(None))):
                return _ignored(file, f"{choice} is not a choice")
        return kept["choices"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return _ignored(file, f"it is damaged ({type(error).__name__}: {error})")


def _ignored(file: pathlib.Path, why: str) -> dict[str, dict[str, Any]]:
    warnings.warn(
        f"manualgrad: {file} is ignored: {why}; delete it, or run manualgrad.tune again",
        stacklevel=2,
    )
    return {}


def write(machine: dict[str, str], measured: dict[str, dict[str, Any]]) -> pathlib.Path:
    """Add measured to what is kept for machine; another process sees the old file or the new.

    Raises ValueError where nothing can be written.
    """
    file = path(machine)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.parent):
            kept = {"format": FORMAT, "machine": machine, "choices": read(machine) | measured}
            write_json(file, kept)
    except OSError as error:
        raise ValueError(
            f"manualgrad.tune: {file} cannot be written ({error}); set MANUALGRAD_CACHE to a "
            f"folder of yours"
        ) from error
    choices.cache_clear()
    return file


@contextlib.contextmanager
def _alone(where: pathlib.Path) -> Iterator[None]:
    """One process at a time, so that none overwrites what another has just added."""
    with open(where / ".lock", "w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
