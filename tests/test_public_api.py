"""What is public stays public, and dependencies run one way."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradguard
import gradguard.testing

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "AddGaussian", "AddLaplace", "Attached", "Cast", "Chain", "Client", "ClipByGlobalNorm",
    "ClipByValue", "DPSGD", "Defense", "ErrorFeedback", "FedAvgClient", "GradTransform", "Grads",
    "GuardedOptimizer", "Identity", "KeepRandomK", "KeepTopK", "LocalTraining", "LowRank",
    "MomentumCorrection", "NamedParameters", "NonFiniteGradientError", "Only",
    "Quantize", "Sign", "State", "Ternary", "UpdateGuard", "UpdateLayout", "WarmUp", "Withhold",
    "apply_update", "chain", "guard", "protect",
}  # fmt: skip


def _public_names(module: object) -> set[str]:
    names = {name: v for name, v in vars(module).items() if not name.startswith("_")}
    return {name for name, value in names.items() if not inspect.ismodule(value)}


def test_the_exports_of_gradguard_are_these() -> None:
    assert _public_names(gradguard) == PUBLIC


def test_the_exports_of_testing_are_these() -> None:
    assert _public_names(gradguard.testing) == {
        *("LAWS", "LawBrokenError", "check_transform", "check_unbiased", "example_parameters"),
        *("grads", "transforms"),
    }


def test_every_export_is_documented() -> None:
    for name in PUBLIC - {"Grads", "State"}:  # aliases, documented in the source
        assert inspect.getdoc(getattr(gradguard, name)), name


def test_the_init_modules_are_short_and_list_their_exports() -> None:
    for package in ("gradguard", "attacks", "evaluation"):
        text = (ROOT / package / "__init__.py").read_text()
        assert "import *" not in text
    assert len((ROOT / "gradguard/__init__.py").read_text().splitlines()) <= 40


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from gradguard import attacks` imports gradguard.attacks
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    if package == "gradguard":  # its two symlinks lead to the other packages
        other = {(ROOT / package / name) for name in ("attacks", "evaluation")}
        found = [path for path in found if not other & set(path.parents)]
    assert found
    return found


@pytest.mark.parametrize("path", _sources("gradguard"), ids=lambda p: p.name)
def test_the_core_imports_neither_attacks_nor_evaluation(path: Path) -> None:
    for name in _imports(path):
        assert not _within(name, "gradguard.attacks"), name
        assert not _within(name, "gradguard.evaluation"), name


@pytest.mark.parametrize("path", _sources("attacks"), ids=lambda p: p.name)
def test_attacks_import_of_the_core_only_its_types(path: Path) -> None:
    for name in _imports(path):
        if _within(name, "gradguard"):
            assert _within(name, "gradguard.attacks") or _within(name, "gradguard.core"), name


@pytest.mark.parametrize("package", ["gradguard", "attacks", "evaluation"])
def test_nothing_imports_the_bare_top_level_names(package: str) -> None:
    for path in _sources(package):
        for name in _imports(path):
            assert not _within(name, "attacks"), f"{path}: {name}"
            assert not _within(name, "evaluation"), f"{path}: {name}"


@pytest.mark.parametrize("package", ["gradguard", "attacks", "evaluation"])
def test_libraries_import_no_test_tool_at_the_top(package: str) -> None:
    """hypothesis and pytest are no dependencies of a user: only within functions."""
    for path in _sources(package):
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import)]
        names = [alias.name for node in top for alias in node.names]
        assert not any(_within(n, t) for n in names for t in ("hypothesis", "pytest"))
