"""The kernel tests with the triton at hand and with the oldest one that is supported.

A process of their own, for triton runs in one mode per process: here in its interpreter where there
is no GPU. The older triton is installed beside the environment's own, into a folder of it,
while the first tests run. --exhaustive is passed on.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

OLDER = ("triton==3.6.0", "numpy==2.3.5")  # triton 3.6 interprets with numpy < 2.4 only
FOLDER = pathlib.Path(sys.prefix) / "triton-3.6"
READY = FOLDER / ".ready"
COMMANDS = {
    "kernels": ["tests/kernels", "-n", "auto", "--dist", "worksteal"],
    "compiled": ["tests/compiled"],
}


def installing() -> subprocess.Popen | None:
    """pip at work on the older triton, in FOLDER; None where it is installed already."""
    if READY.exists():
        return None
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    return subprocess.Popen([*pip, "--no-deps", "--target", str(FOLDER), *OLDER])


def started(name: str, label: str, **extra: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pytest", *COMMANDS[name], *sys.argv[1:]]
    print(f"{name}, triton {label}", flush=True)
    return subprocess.Popen(command, env=os.environ | extra)


def main() -> int:
    if importlib.util.find_spec("triton") is None:
        print("kernels: triton is not installed (it exists for Linux only), so nothing to test")
        return 0
    version = importlib.metadata.version("triton")
    pip = installing()
    passed = started("kernels", version).wait() == 0
    if pip is not None:
        if pip.wait():
            print("kernels: triton 3.6 could not be installed; pip's message is above")
            return 1
        READY.touch()
    older = {"PYTHONPATH": str(FOLDER)}
    part = started("kernels", "3.6.0, every twelfth", **older, KERNEL_TESTS="1/12")
    passed &= part.wait() == 0
    both = [started("compiled", version), started("compiled", "3.6.0", **older)]  # a core each
    codes = [process.wait() for process in both]
    return 0 if passed and not any(codes) else 1


if __name__ == "__main__":
    sys.exit(main())
