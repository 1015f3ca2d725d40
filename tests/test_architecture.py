"""Who may import whom (ARCHITECTURE.md), and what may not be loaded with it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pipeline": set(),
    "shard_tool": {"pipeline"},
    "demo": {"pipeline"},
    "train": {"pipeline"},
    "explore": {"train", "pipeline", "shard_tool"},
}


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import of one level stays in the package; packages here have no deeper folders.
            yield node.lineno, node.module or "" if not node.level else "." * node.level + (node.module or "")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_those_below_them(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has moved"
    forbidden = {*MAY_IMPORT, "tests", "benchmarks"} - MAY_IMPORT[package] - {package}
    if package == "shard_tool":
        forbidden -= {"demo"}  # draw-faces is the way in; what it draws with is loaded by it alone.
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported_modules(path)
        if name.partition(".")[0] in forbidden or name.startswith("..")
    ]
    assert not found, "\n".join(found)


def test_every_top_level_package_has_a_place_in_the_architecture():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(MAY_IMPORT)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "module",
    [
        "pipeline",
        "pipeline.format",
        "pipeline.counter",
        "pipeline.order",
        "pipeline.shards.shard",
        "shard_tool.cli",
    ],
)
def test_the_format_and_the_shard_tool_load_no_torch(module):
    loaded = loaded_by(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert not loaded & {"torch", "accelerate", "simplejpeg"} - (
        {"simplejpeg"} if module == "shard_tool.cli" else set()
    )


def test_the_names_of_the_pipeline_load_when_they_are_first_used():
    assert "torch" not in loaded_by("from pipeline import ShardSet")
    assert "torch" in loaded_by("from pipeline import StreamingLoader")


def test_a_name_that_the_pipeline_lacks_is_an_attribute_error():
    import pipeline

    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        _ = pipeline.Loader
