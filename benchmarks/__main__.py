"""python -m benchmarks [NAME ...]: time and memory, ours against eager, torch.compile and peers."""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter; it reads this early
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # they do not see that we changed

import torch

from benchmarks import (
    compiled,
    contests,
    equations,
    grid,
    memory,
    peers,
    recording,
    scaling,
    second,
    small,
)
from benchmarks.grid import GRID
from benchmarks.outcome import Outcome, RefusedError, Row, Settings


def _said(module) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


MODULES = (small, second, memory, equations, scaling)
# name: (what a line says of it, the suite); compiled is a table alone, which no device changes
SUITES: dict[str, tuple[str, Callable[[Settings], Outcome]]] = {
    **{name: (told, functools.partial(contests.run, name)) for name, told in grid.ABOUT.items()},
    **{
        m.__name__.split(".")[-1]: (_said(m), m.run)
        for m in (small, second, memory, equations, scaling)
    },
    "compiled": (_said(compiled), lambda settings: Outcome([], compiled.run(), {})),
}
PLAIN = ("small", "memory", "compiled")  # what runs where nothing is named
OF_THE_CPU = (*PLAIN, "second")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    """0: done; 1: somebody failed the check before the timing; 2: it cannot be asked for so."""
    options = _parser().parse_args(arguments)
    try:
        for name in options.names:
            if name not in (*SUITES, "grid"):
                known = ", ".join([*SUITES, "grid"])
                raise RefusedError(f"unknown suite {name!r}; there are {known}")
        return _run(options)
    except RefusedError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    device = _device(options.device)
    if options.threads is not None:
        if options.threads < 1:
            raise RefusedError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    names: list[str] = []
    for name in options.names or PLAIN:
        names += GRID if name == "grid" else [name]
    places = {name: "cpu" if name in OF_THE_CPU else device for name in names}
    folders = {
        place: recording.folder(pathlib.Path(options.out), place, options.quick)
        for place in places.values()
    }
    machines = {place: recording.machine(place) for place in folders}
    settings = {place: _settings(options, place) for place in folders}
    for about in machines.values():
        print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(peers.told())
    every: list[Row] = []
    wrong = []
    for name, place in places.items():
        start = time.perf_counter()
        told, run = SUITES[name]
        outcome = run(settings[place])
        print(f"\n{name}: {told}\n\n{outcome.text}\n", flush=True)
        if outcome.rows:
            about = _with_ceilings(machines[place], settings[place])
            files = recording.write(folders[place], name, about, outcome)
            took = time.perf_counter() - start
            print(f"{took:.0f} s; written to {folders[place]}: {', '.join(files)}", flush=True)
        every += [row for row in outcome.rows if name in GRID and "varied" not in row]
        wrong += [f"{name}: {reason}" for reason in outcome.wrong]
    if len({*names} & {*GRID}) > 1:
        print(f"\nall of them\n\n{contests.summary(every)}")
    for reason in wrong:
        print(f"python -m benchmarks: failed its check, {reason}", file=sys.stderr)
    return 1 if wrong else 0


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if asked != "cpu" and (kind != "cuda" or not (number or "0").isdigit()):
        raise RefusedError(f"--device must be cpu, cuda, cuda:N or auto, got {asked!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise RefusedError(f"--device {asked}: torch sees {torch.cuda.device_count()} GPUs")
    return asked


def _settings(options: argparse.Namespace, place: str) -> Settings:
    names = options.dtype or (["bfloat16"] if place.startswith("cuda") else DTYPES)
    return Settings(place, tuple(DTYPES[name] for name in names), options.quick)


def _with_ceilings(about: Row, settings: Settings) -> Row:
    """The machine, and its ceilings where a suite asked for them."""
    asked = "ceilings" in vars(settings)
    return {**about, "quick": settings.quick, **(asdict(settings.ceilings) if asked else {})}


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:10} {told}" for name, (told, _) in SUITES.items()]
    lines.append(f"  {'grid':10} {', '.join(GRID)}, and the geometric means over all")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Suites:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"suites to run; none: {', '.join(PLAIN)}")
    add("--device", default="auto", help="cpu, cuda, cuda:N; auto: cuda where there is one")
    both = "default: both, on a GPU bfloat16; may be given twice"
    add("--dtype", action="append", choices=list(DTYPES), help=both)
    add("--threads", type=int, metavar="N", help="of the CPU; default: torch's")
    add("--quick", action="store_true", help="the first problem of each suite, briefly")
    default = str(pathlib.Path(__file__).with_name("results"))
    add("--out", metavar="DIR", default=default, help="default: benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
