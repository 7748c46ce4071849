"""Makes the virtual environment that `make demo` and `make test` run in.

Usage: python tools/environment.py VENV CONSTRAINTS

Installs this repository, editable, with its dev extra and the pinned versions of CONSTRAINTS. A
torch that is already there is kept, whatever its version and build (from 2.11 on): one in VENV, one
that the interpreter sees, or one that PIP_CONSTRAINT names. Then torch and triton are not pinned.
The libraries whose models the tests patch need the pinned torch: beside another they are left out,
and those tests skipped. Nothing is compiled to bytecode in advance: that takes longer than to
compile what is imported.
"""

import os
import pathlib
import re
import subprocess
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
FIND_TORCH = "import importlib.metadata as m; print(m.version('torch'))"


def torch_of(python):
    """The version of torch that this interpreter sees, if it is new enough; else None."""
    found = subprocess.run([python, "-c", FIND_TORCH], capture_output=True, text=True)
    version = found.stdout.strip()
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    return version if found.returncode == 0 and numbers >= OLDEST_TORCH else None


def make(venv, constraints):
    if sys.version_info < OLDEST_PYTHON:
        raise SystemExit(
            "manualgrad needs Python >= 3.11, and {} is {}.{}; name another interpreter: "
            "make test PYTHON=python3.12".format(sys.executable, *sys.version_info[:2])
        )
    python = venv / "bin" / "python"
    if not python.exists():
        own = torch_of(sys.executable)
        flags = ["--system-site-packages"] if own else []
        made = subprocess.run([sys.executable, "-m", "venv", *flags, str(venv)])
        if made.returncode:
            raise SystemExit("python -m venv failed; on Debian: apt-get install python3-venv")
    pins = constraints.read_text()
    kept = torch_of(str(python))
    extra = "dev" if kept is None or f"torch=={kept.split('+')[0]}\n" in pins else "tools"
    if kept or os.environ.get("PIP_CONSTRAINT"):
        print("environment: keeping torch", kept or "as PIP_CONSTRAINT says", flush=True)
        pins = "".join(
            line for line in pins.splitlines(True) if not re.match(r"(torch|triton)==", line)
        )
    chosen = venv / "constraints.txt"
    chosen.write_text(pins)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    installed = subprocess.run([*pip, "-c", str(chosen), "-e", f".[{extra}]"])
    if installed.returncode:
        raise SystemExit("pip install failed; its message is above")


if __name__ == "__main__":
    make(*map(pathlib.Path, sys.argv[1:]))
