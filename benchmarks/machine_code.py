"""Reading what the compiler made for an NVIDIA GPU, with the tools that come with triton."""

import functools
import pathlib
import re
import subprocess
import tempfile


def number(pattern: str, text: str) -> int:
    """The number that pattern finds in what a tool printed."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"{pattern} is not in {text[:500]}")
    return int(found[1])


def disassembled(kernel) -> tuple[int, int, list[tuple[str, str]]]:
    """(registers, bytes of the spill stores, [(instruction, operands or label)])."""
    import triton

    tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([tools / "cuobjdump", "--dump-resource-usage", path]).stdout
        listing = run([tools / "nvdisasm", "-c", path]).stdout
    registers = number(r"REG:(\d+)", usage)
    code = []
    for line in listing.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            code.append(("label", label[1]))
        found = re.match(
            r"^\s+(?:/\*[0-9a-f]{4,}\*/)?\s+(?:@!?U?P[T0-9]+ )?\s*([A-Z][A-Za-z0-9_.]*)([^;]*);",
            line,
        )
        if found and found[1] != "NOP":
            code.append((found[1], found[2]))
    width = {"64": 8, "128": 16}
    spilled = sum(
        width.get(op.split(".")[1] if "." in op else "", 4)
        for op, _ in code
        if op.startswith("STL")
    )
    return registers, spilled, code


def main_loop(code, core) -> tuple[list[str], list[str]]:
    """The instructions of the innermost loop around a matrix product, and those after it."""
    place = {operand: i for i, (op, operand) in enumerate(code) if op == "label"}
    products = [i for i, (op, _) in enumerate(code) if re.match(core, op)]
    loops = []
    for i, (op, operands) in enumerate(code):
        target = re.search(r"\.L_x_\d+", operands) if op.startswith("BRA") else None
        if target and place.get(target[0], i) < i:
            loops.append((place[target[0]], i))
    loops = [(a, b) for a, b in loops if any(a <= p <= b for p in products)]
    if not loops:
        return [], []
    first, last = min(loops, key=lambda loop: loop[1] - loop[0])
    inside = [op for op, _ in code[first : last + 1] if op != "label"]
    return inside, [op for op, _ in code[last + 1 :] if op != "label"]
