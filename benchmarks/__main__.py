"""python -m benchmarks [NAME ...]: run the named suites, or all; prints tables."""

import argparse
import os
import platform
import sys

import torch

from benchmarks import compiled, memory, small

SUITES = {"small": small, "memory": memory, "compiled": compiled}


def main(arguments: list[str] | None = None) -> int:
    lines = [f"  {name:8} {(suite.__doc__ or '').strip()}" for name, suite in SUITES.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Suites:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="suites to run; none: all")
    names = parser.parse_args(arguments).names
    for name in names:
        if name not in SUITES:
            parser.error(f"unknown suite {name!r}; there are {', '.join(SUITES)}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    for name in names or SUITES:
        print(f"\n{name}: {SUITES[name].run()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
