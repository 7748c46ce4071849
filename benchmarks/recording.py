"""Where a run's rows go: CSV, JSON and a picture in a folder of the device, whole or not at all."""

import csv
import io
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import tempfile
from typing import Any

import torch

import manualgrad as mg
from benchmarks.outcome import Outcome, RefusedError
from manualgrad.files import write_bytes

KEYS = ("device", "threads", "torch", "triton", "manualgrad", "commit")  # of a row


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
    told = dict(re.findall(r"^([a-z ]+?)\s*:\s*(.+?)\s*$", text, re.MULTILINE))
    has = [f for f in ("avx2", "avx512f", "amx_bf16") if f in told.get("flags", "").split()]
    name = told.get("model name", platform.machine())
    if "cpu family" in told:  # a virtual machine's name may say no more than the maker's
        name += f", family {told['cpu family']} model {told.get('model', '?')}"
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


def folder(out: pathlib.Path, device: str, quick: bool) -> pathlib.Path:
    """out/NAME-OF-THE-DEVICE, made; raises RefusedError where it cannot be.

    quick: a folder within it, so that a trial writes over no measurement.
    """
    there = out / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    there = there / "quick" if quick else there
    try:
        there.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise RefusedError(f"--out {out} cannot be written in: {error.strerror}") from None
    return there


def write(there: pathlib.Path, suite: str, about: dict[str, Any], outcome: Outcome) -> list[str]:
    """SUITE.json, SUITE.csv, whose rows name device and versions, and the pictures; their names."""
    keyed = [{**row, **{key: about[key] for key in KEYS if key in about}} for row in outcome.rows]
    columns = list(dict.fromkeys(name for row in keyed for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(keyed)
    told = json.dumps(_finite({"machine": about, "rows": outcome.rows}), indent=1, allow_nan=False)
    contents = {
        f"{suite}.json": f"{told}\n".encode(),
        f"{suite}.csv": text.getvalue().encode(),
        **{f"{name}.png": png for name, png in outcome.pictures.items()},
    }
    for name, content in contents.items():
        try:
            write_bytes(there / name, content)
        except OSError as error:
            raise RefusedError(f"{there / name} cannot be written: {error.strerror}") from None
    return list(contents)


def _finite(content: Any) -> Any:
    """JSON has no word for inf and NaN: their texts."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
