"""Rows on disk: those of finished runs while an experiment is going on, all of them at its end."""

import contextlib
import csv
import io
import os
import pathlib
import platform
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import pandas as pd
import torch

import manualgrad as mg
from experiments.statistics import Rows
from experiments.study import Setting

KEY = ["part", "arm", "seed"]  # of a run: one arm under one seed
MADE_WITH = [
    *("budget", "data", "device", "dtype", "backend"),
    *("manualgrad", "torch", "commit", "machine"),
]


class RecordError(Exception):
    """A file that cannot be read, written or gone on from; its text is one line for the user."""


def made_with(budget: str, setting: Setting) -> dict[str, str]:
    """What rows must have in common to stand in one file; a part may have a dtype of its own."""
    device = setting.device
    if device.startswith("cuda"):
        device += f" ({torch.cuda.get_device_name(device)})"
    return {
        "budget": budget,
        "data": setting.data,
        "device": device,
        "dtype": setting.dtype,
        "backend": setting.backend,
        "manualgrad": mg.__version__,
        "torch": torch.__version__,
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()} {os.cpu_count()} cores",
    }


def _commit() -> str:
    """Of the source, "+" where it was changed since; "none" outside of a git checkout."""
    root = pathlib.Path(__file__).parents[1]
    sources = ["experiments", "manualgrad", "triton_kernels"]
    try:
        said = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
            for words in (
                ("rev-parse", "--short=9", "HEAD"),
                ("status", "--porcelain", "--", *sources),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "none"
    head, changed = (one.stdout.strip() for one in said)
    return head + ("+" if changed else "")


def write_whole(contents: dict[pathlib.Path, bytes]) -> None:
    """Whoever reads a file finds the old one or the new one, whole; on a full disk all old ones.

    Raises RecordError where that cannot be.
    """
    written: dict[str, pathlib.Path] = {}
    file = None
    try:
        for file, content in contents.items():
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
            written[temporary] = file
            with os.fdopen(handle, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
        for temporary, file in list(written.items()):
            os.replace(temporary, file)
            del written[temporary]
    except OSError as error:
        raise RecordError(f"{file} cannot be written: {error.strerror or error}") from None
    finally:
        for temporary in written:
            os.unlink(temporary)


@contextlib.contextmanager
def alone(name: str, out: pathlib.Path) -> Iterator[None]:
    """Nobody else writes NAME's files in out meanwhile; raises RecordError if somebody does."""
    file = out / f".{name}.lock"
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RecordError(
            f"another run of {name} is writing in {out}; wait for it, or take another --out"
        ) from None
    except OSError as error:
        raise RecordError(f"{out} cannot be written in: {error.strerror or error}") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def as_csv(rows: Rows) -> bytes:
    return rows.to_csv(index=False, lineterminator="\n").encode()


def read_csv(file: pathlib.Path) -> Rows:
    """Numbers as they were, to the last bit; raises RecordError."""
    try:
        return _parse(file.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{file} cannot be read: {_one_line(error)}") from None


def _parse(text: str) -> Rows:
    words = dict.fromkeys(["part", "arm", *MADE_WITH], str)  # commit 6261327e7 is no number
    how: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "dtype": words}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):  # since then it is the only one
        how["float_precision"] = "round_trip"
    return pd.read_csv(io.StringIO(text), **how)


class Journal:
    """NAME.partial.csv: the rows of finished runs, each with a check sum, to go on from.

    It is rewritten whole after each run: an interruption, or a full disk, leaves the runs before.
    """

    def __init__(self, file: pathlib.Path, setting: dict[str, str], fresh: bool) -> None:
        self.file, self.setting = file, setting
        self.remarks: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._lines: list[str] = []
        if file.exists() and not fresh:
            self._read()
        self._check_setting()
        self._seconds = max((row["wall_seconds"] for row in self._rows), default=0.0)

    @property
    def rows(self) -> Rows:
        return pd.DataFrame(self._rows, columns=None if self._rows else KEY)

    def done(self) -> set[tuple[str, str, int]]:
        """(part, arm, seed) of each finished run."""
        return {(row["part"], row["arm"], int(row["seed"])) for row in self._rows}

    def add(self, key: tuple[str, str, int], rows: Sequence[dict[str, Any]], wall: float) -> None:
        """The rows of a finished run, on disk before this returns."""
        common = {"rows": len(rows), "wall_seconds": self._seconds + wall, **self.setting}
        new = [{**dict(zip(KEY, key, strict=True)), **row, **common} for row in rows]
        columns = [*self._columns, *dict.fromkeys(name for row in new for name in row)]
        columns = list(dict.fromkeys(columns))
        self._rows += new
        if columns != self._columns:
            self._columns, new = columns, self._rows
            self._lines = []
        text = as_csv(pd.DataFrame(new, columns=columns)).decode()
        header, *lines = text.splitlines()
        self._lines += [f"{line},{_check_sum(line)}\n" for line in lines]
        write_whole({self.file: "".join([f"{header},check\n", *self._lines]).encode()})

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)

    def _read(self) -> None:
        """The runs of which each row is there and unharmed; remarks tell of the others."""
        try:
            header, *lines = self.file.read_text().splitlines()
        except (OSError, ValueError) as error:
            reason = "it is empty" if isinstance(error, ValueError) else error.strerror
            raise RecordError(
                f"{self.file} cannot be gone on from: {reason}; --fresh starts anew"
            ) from None
        fields, _, check = header.rpartition(",")
        good, bad = [], []
        for number, line in enumerate(lines, 2):
            text, _, told = line.rpartition(",")
            (good if told == _check_sum(text) else bad).append((number, text))
        if check != "check" or not {*KEY, "rows", *MADE_WITH} <= set(next(csv.reader([fields]))):
            raise RecordError(
                f"{self.file} cannot be gone on from: its first line is damaged; --fresh starts "
                f"anew"
            )
        rows = _parse("\n".join([fields, *(text for _, text in good)]))
        whole = rows.groupby(KEY)["seed"].transform("size") == rows["rows"]
        self._rows = [_without_blanks(row) for row in rows[whole].to_dict("records")]
        if bad:
            numbers = ", ".join(str(number) for number, _ in bad[:5])
            self.remarks.append(
                f"{self.file}: line {numbers}{', ...' if len(bad) > 5 else ''} is damaged; that "
                f"run is done again, the {len(self.done())} others are kept"
            )

    def _check_setting(self) -> None:
        for name in MADE_WITH:
            for there in {str(row[name]) for row in self._rows}:
                if there != self.setting[name]:
                    raise RecordError(
                        f"{self.file} holds unfinished runs of {name} {there}, this is {name} "
                        f"{self.setting[name]}; go on there with another --out, or --fresh "
                        f"starts anew"
                    )


def _without_blanks(row: dict[Any, Any]) -> dict[str, Any]:
    return {name: cell for name, cell in row.items() if cell == cell}


def _check_sum(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
