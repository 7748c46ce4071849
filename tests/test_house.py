"""The rules of the house, checked by reading the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("manualgrad", "triton_kernels")
FILES = sorted(p for top in PACKAGES for p in (ROOT / top).rglob("*.py"))
ALL_FILES = sorted(
    p
    for top in (*PACKAGES, "tests", "experiments", "benchmarks", "tools")
    for p in (ROOT / top).rglob("*.py")
)

# who may import whom: a module imports from lines above its own, never from below
LAYERS = [
    {
        "triton_kernels",
        "manualgrad.formula",
        "manualgrad.equations",
        "manualgrad.files",
        "manualgrad.sharding",
        "manualgrad.tables",
        "manualgrad._version",
    },
    {"manualgrad.activations"},
    {"manualgrad.equations"},
    {"manualgrad.compat", "manualgrad.chain", "manualgrad.listening", "manualgrad.measuring"},
    {"manualgrad.half_precision"},
    {"manualgrad.products"},
    {"manualgrad.one_pass"},
    {"manualgrad.aten", "manualgrad.tuned"},
    {"manualgrad.eligibility", "manualgrad.in_place", "manualgrad.asking"},
    {"manualgrad.backends"},
    {"manualgrad.routed", "manualgrad.front_door"},
    {"manualgrad.differentiable"},
    {"manualgrad.composite"},
    {"manualgrad.tuning", "manualgrad.ops"},
    {"manualgrad.keeping", "manualgrad.operands"},
    {"manualgrad.walks"},
    {"manualgrad.gates"},
    {"manualgrad.tiling", "manualgrad.narrow", "manualgrad.small"},
    {"manualgrad.functions"},
    {"manualgrad.functional", "manualgrad.losses", "manualgrad.capture"},
    {"manualgrad.explanation", "manualgrad.dag"},
    {"manualgrad.nn"},
    {"manualgrad.verify"},
    {"manualgrad"},
    {"manualgrad.cli"},
    {"manualgrad.__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def unit(module):
    """The entry of LAYERS that a dotted module name belongs to."""
    if module.startswith("manualgrad.triton_kernels"):
        return "triton_kernels"  # the name it installs under
    head, *rest = module.split(".")
    return head if head != "manualgrad" or not rest else f"{head}.{rest[0]}"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parts[-2] == "triton_kernels", "absolute imports"
            if node.module == "manualgrad":
                yield from (f"manualgrad.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path):
    me = unit(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert me in RANK, f"give {me} its place in LAYERS"
    for name in imported(path):
        other = unit(name)
        if other != me and other.split(".")[0] in PACKAGES:
            assert RANK[other] < RANK[me], f"{me} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_the_library_imports_only_torch_and_the_standard_library(path):
    allowed = {"torch", "manualgrad"}
    if path.is_relative_to(ROOT / "triton_kernels"):
        allowed = {"torch", "triton"}
    for node in ast.parse(path.read_text()).body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [node.module]
        for module in modules:
            head = module.split(".")[0]
            assert head in allowed or head in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", ALL_FILES, ids=relative)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_reference_stays_under_80_lines():
    text = (ROOT / "manualgrad" / "equations.py").read_text()
    assert len(text.splitlines()) < 80
    assert text.startswith('"""READ THIS FIRST')


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_users_errors_are_not_assertions(path):
    asserts = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]
    assert not asserts, "an assert vanishes under python -O; raise ValueError or TypeError"


# what benchmarks need and no public name reaches
KERNELS = (
    "manualgrad.triton_kernels",
    "manualgrad.activations",
    "manualgrad.backends",
    "manualgrad.routed",
    "manualgrad.equations",
    "manualgrad.files",
    "manualgrad.products",
)


def test_experiments_and_benchmarks_use_public_names_only():
    for path in ALL_FILES:
        if path.parts[len(ROOT.parts)] in ("experiments", "benchmarks"):
            allowed = KERNELS if path.parts[len(ROOT.parts)] == "benchmarks" else ()
            for name in imported(path):
                if not (allowed and name.startswith(allowed)):
                    assert not name.startswith("manualgrad."), f"{relative(path)} imports {name}"


def test_sources_are_ascii():
    for path in ALL_FILES:
        assert path.read_text().isascii(), relative(path)


def test_nothing_generated_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: " + listed.stderr.strip())
    tracked = listed.stdout.split()
    assert not [f for f in tracked if f.endswith((".pyc", ".gz")) or ".venv/" in f]
