"""python -m benchmarks [NAME ...]: time and memory, ours against eager and torch.compile."""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter; it reads this early

import torch
from tabulate import tabulate

from benchmarks import (
    ceilings,
    compiled,
    contests,
    equations,
    memory,
    recording,
    scaling,
    small,
    suites,
)

PLAIN = {"small": small, "memory": memory, "compiled": compiled}  # a table each, nothing written
MEASURED = {
    **suites.ABOUT,
    "equations": (equations.__doc__ or "").strip(),
    "scaling": (scaling.__doc__ or "").strip(),
}
GRID = ("layer", "mlp", "chain", "narrow")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    """0: all that was asked for has a time; 1: a contestant of ours failed its check; 2: no."""
    options = _parser().parse_args(arguments)
    try:
        for name in options.names:
            if name not in (*PLAIN, *MEASURED, "grid"):
                known = ", ".join([*PLAIN, *MEASURED, "grid"])
                raise ValueError(f"unknown suite {name!r}; there are {known}")
        return _run(options)
    except ValueError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    about = recording.machine(device)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    names: list[str] = []
    for name in options.names or list(PLAIN):
        names += GRID if name == "grid" else [name]
    measured = [name for name in dict.fromkeys(names) if name in MEASURED]
    there = pathlib.Path(options.out)
    if measured:
        there = recording.folder(there, device)
    dtypes = tuple(DTYPES[name] for name in options.dtype or DTYPES)
    roof = ceilings.measured(device, list(dtypes)) if measured else None
    if roof:
        flops = ", ".join(f"{v / 1e12:.3g} TFLOP/s {name}" for name, v in roof.flops.items())
        print(f"ceilings: {flops}, {roof.bandwidth / 1e9:.3g} GB/s")
    every, good = [], True
    for name in dict.fromkeys(names):
        if name in PLAIN:
            print(f"\n{name}: {PLAIN[name].run()}", flush=True)
            continue
        rows, images, text = _measured(name, device, dtypes, options.quick, roof)
        print(f"\n{name}: {MEASURED[name]}\n\n{text}", flush=True)
        files = recording.write(there, name, about, rows, images)
        print(f"\nwritten to {there}: {', '.join(files)}", flush=True)
        if name in suites.ABOUT:
            every += rows if name in GRID else []
            good &= not any("not timed" in r for r in rows if r["provider"] == contests.OURS)
    if len({row["dtype"] for row in every}) and len(measured) > 1:
        print(f"\n{' + '.join(n for n in measured if n in GRID)}\n\n{contests.summary(every)}")
    return 0 if good else 1


def _measured(name, device, dtypes, quick, roof):
    """(rows, pictures, text) of a suite that is recorded."""
    if name == "equations":
        rows = [row for dtype in dtypes for row in equations.rows(device, dtype, roof)]
        return rows, {}, tabulate(rows, headers="keys", floatfmt=".3g")
    if name == "scaling":
        rows = scaling.rows(device)
        return rows, {}, f"{tabulate(rows, headers='keys', floatfmt='.3g')}\n\n{scaling.told(rows)}"
    rows = contests.run(name, device, dtypes, quick, roof)
    text = f"{contests.table(rows)}\n\n{contests.summary(rows)}"
    return rows, contests.drawn(name, rows, roof), text


def _parser() -> argparse.ArgumentParser:
    about = {**{name: (suite.__doc__ or "").strip() for name, suite in PLAIN.items()}, **MEASURED}
    about["grid"] = f"{', '.join(GRID)}, and the geometric means over all"
    lines = [f"  {name:10} {text}" for name, text in about.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Suites:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"suites to run; none: {', '.join(PLAIN)}")
    add("--device", default="auto", help="cpu or cuda; auto: cuda where there is one")
    add("--dtype", action="append", choices=list(DTYPES), help="default: both")
    add("--threads", type=int, metavar="N", help="of the CPU; default: torch's")
    add("--quick", action="store_true", help="the first problem of each suite, briefly")
    default = str(pathlib.Path(__file__).with_name("results"))
    add("--out", metavar="DIR", default=default, help="default: benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
