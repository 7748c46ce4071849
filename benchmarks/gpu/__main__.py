"""python -m benchmarks.gpu STAGE FOLDER [--dry-run]: one stage, written to FOLDER/STAGE.json.
python -m benchmarks.gpu summary FOLDER: what the stages found, one line for each comparison.

Ratios are times, ours / theirs: below 1 we win. Losses are shown like wins.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.stages import STAGES


def write(path: pathlib.Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as out:
        json.dump(content, out, indent=1)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def versions(bench: Bench) -> dict[str, str]:
    import triton

    device = "dry run, Triton's interpreter" if bench.dry else torch.cuda.get_device_name()
    return {"device": device, "torch": torch.__version__, "triton": triton.__version__}


def summary(folder: pathlib.Path) -> str:
    """Per stage and pair of providers: how many comparisons, the least, median, largest ratio."""
    lines = [f"{'stage':14} {'ours / theirs, of times':46} {'n':>3} least median largest"]
    for path in sorted(folder.glob("*.json")):
        try:
            kept = json.loads(path.read_text())
        except ValueError as error:
            lines.append(f"{path.stem:14} damaged: {error}")
            continue
        groups: dict[str, list[float]] = {}
        for row in kept["rows"]:
            if "ratio" in row:
                about = row.get("operation", row.get("chain", ""))
                pair = f"{about} {row.get('activation', '')} {row['ours']} / {row['theirs']}"
                groups.setdefault(" ".join(pair.split()), []).append(row["ratio"])
            elif "host_us" in row:
                lines.append(f"{path.stem:14} {row['ours']:46} {row['host_us']:.1f} us a launch")
            elif "activation" in row:
                errors = ", ".join(f"{k} {v:.2f}" for k, v in row[FAST].items())
                lines.append(f"{path.stem:14} {row['activation']:46} {errors} eps")
            else:
                lines.append(f"{path.stem:14} {row}")
        for pair, ratios in groups.items():
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            numbers = f"{len(ratios):3d} {low:5.2f} {middle:6.2f} {high:7.2f}"
            lines.append(f"{path.stem:14} {pair:46} {numbers}")
    return "\n".join(lines)


FAST = "largest relative error / eps"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "summary"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, to try it")
    given = parser.parse_args(arguments)
    if given.stage == "summary":
        if not given.folder.is_dir():
            parser.error(f"there is no folder {given.folder}")
        print(summary(given.folder))
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry-run tries the stage on the CPU")
    bench = Bench(given.dry_run)
    torch.manual_seed(0)
    stage = STAGES[given.stage]
    print(f"{given.stage}: {(stage.__doc__ or '').splitlines()[0]}", flush=True)
    about = {"stage": given.stage, "question": stage.__doc__, **versions(bench)}
    rows: list[dict[str, Any]] = []
    for row in stage(bench):
        rows.append(row)
        write(given.folder / f"{given.stage}.json", {**about, "rows": rows})
    print(f"{given.stage}: {len(rows)} rows", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
