"""Who may import whom: read from the source, so lazy imports count too."""

import ast
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGES = ("train", "export", "hardware", "serve")
ALLOWED = {
    "hardware": {"hardware"},
    "train": {"train"},
    "export": {"export", "train", "hardware"},
    "serve": {"serve", "hardware"},
}


def modules(package: str) -> dict[str, ast.Module]:
    """Every module of a package by dotted name, parsed."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imported(nodes: list[ast.stmt] | ast.AST) -> set[str]:
    """The dotted names that an import statement below `nodes` brings in."""
    walk = ast.walk(nodes) if isinstance(nodes, ast.AST) else iter(nodes)
    names = set()
    for node in walk:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for name, tree in modules(package).items():
        ours = {target for target in imported(tree) if target.split(".")[0] in PACKAGES}
        if package == "export":  # when an image may stop is decided by one rule, in a bundle and at the server
            ours = {target for target in ours if target.split(".")[:2] != ["serve", "exits"]}
        used = {target.split(".")[0] for target in ours}
        assert used <= ALLOWED[package], f"{name} imports {used - ALLOWED[package]}"


def test_serve_and_hardware_never_import_torch() -> None:
    for package in ("serve", "hardware"):
        for name, tree in modules(package).items():
            roots = {target.split(".")[0] for target in imported(tree)}
            assert not roots & {"torch", "torchvision", "spikingjelly"}, name


def test_no_modules_import_each_other_in_a_circle() -> None:
    trees = {name: tree for package in PACKAGES for name, tree in modules(package).items()}
    edges = {name: {t for t in imported(tree.body) if t in trees and t != name} for name, tree in trees.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path, name))}"
        if name not in done:
            for target in edges[name] - {name.rpartition(".")[0]}:
                visit(target, (*path, name))
            done.add(name)

    for name in trees:
        visit(name, ())


def test_every_package_is_listed_for_installation() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(listed) == folders
