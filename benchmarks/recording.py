"""Where a run's rows go: CSV, JSON and a picture in a folder of the device, whole or not at all."""

import csv
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import tempfile
from typing import Any

import torch

import manualgrad as mg
from manualgrad.files import write_bytes

Row = dict[str, Any]


def machine(device: str) -> dict[str, Any]:
    """What a time is worth nothing without."""
    found = {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": _caches(),
        "torch": torch.__version__,
        "manualgrad": mg.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.startswith("cuda"):
        found["triton"] = __import__("triton").__version__
    return found


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    told = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    has = [f for f in ("avx2", "avx512f", "amx_bf16") if flags and f in flags[1].split()]
    name = told[1].strip() if told else platform.machine()
    return f"{name} ({os.cpu_count()} cores{', ' + has[-1] if has else ''})"


def _caches() -> str:
    try:
        said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    found = re.findall(r"^(L\d\S*) cache:\s*(.+)$", said, re.MULTILINE)
    return ", ".join(f"{name} {size}" for name, size in found) or "unknown"


def _commit() -> str:
    root = pathlib.Path(__file__).parents[1]
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short=9", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return head + ("+" if changed else "")


def folder(out: pathlib.Path, device: str) -> pathlib.Path:
    """out/NAME-OF-THE-DEVICE, made; raises ValueError where it cannot be."""
    there = out / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    try:
        there.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written in: {error.strerror}") from None
    return there


def write(
    there: pathlib.Path, suite: str, about: dict[str, Any], rows: list[Row], pictures: dict
) -> list[str]:
    """SUITE.json, SUITE.csv and the pictures, {name: PNG}; their names."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        f"{suite}.json": (json.dumps({"machine": about, "rows": rows}, indent=1) + "\n").encode(),
        f"{suite}.csv": text.getvalue().encode(),
        **{f"{name}.png": png for name, png in pictures.items()},
    }
    for name, content in contents.items():
        try:
            write_bytes(there / name, content)
        except OSError as error:
            raise ValueError(f"{there / name} cannot be written: {error.strerror}") from None
    return list(contents)
