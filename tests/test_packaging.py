"""What is built and installed is what is in the repository: no package forgotten or misplaced."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"gradguard": "gradguard", "attacks": "gradguard.attacks",
            "evaluation": "gradguard.evaluation"}  # fmt: skip

_IMPORT_ALL = """
import importlib, json, pkgutil, sys
import gradguard
found = ["gradguard"]
for module in pkgutil.walk_packages(gradguard.__path__, "gradguard."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
    found.append(module.name)
print(json.dumps({"modules": found, "file": gradguard.__file__,
                  "stray": sorted({"attacks", "evaluation"} & set(sys.modules))}))
"""


def _on_disk() -> dict[str, Path]:
    """Import name of every package, and its folder, from the three top-level folders."""
    found = {}
    for folder, name in PACKAGES.items():
        top = ROOT / folder
        for init in top.rglob("__init__.py"):
            inside = init.parent.relative_to(top)
            if folder == "gradguard" and inside.parts[:1] in (("attacks",), ("evaluation",)):
                continue  # the symlinks
            found[".".join((name, *inside.parts))] = init.parent
    return found


def _modules() -> set[str]:
    return {
        name if path.stem == "__init__" else f"{name}.{path.stem}"
        for name, folder in _on_disk().items()
        for path in folder.glob("*.py")
    }


def test_declared_packages_are_the_packages_on_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(_on_disk())


def test_the_symlinks_point_to_their_packages() -> None:
    for name in ("attacks", "evaluation"):
        link = ROOT / "gradguard" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_each_module_is_imported_under_one_name_only() -> None:
    """Collected by the wrong path, a module would exist twice and its classes differ."""
    import gradguard.attacks
    import gradguard.evaluation

    assert gradguard.attacks.__name__ == "gradguard.attacks"
    assert not {"attacks", "evaluation"} & set(sys.modules)


def _copied(target: Path) -> Path:
    """The files that a build reads, so that the repository gains no build folders."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = _copied(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    _run([*build, str(source)], cwd=source)
    (found,) = out.glob("*.whl")
    return found


def _run(command: list[str], *, cwd: Path, path: Path | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_beside_gradguard(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gradguard"}
    files = {name.removesuffix(".py").replace("/", ".") for name in names if name.endswith(".py")}
    assert {name.removesuffix(".__init__") for name in files} == _modules()
    assert "gradguard/py.typed" in names


@pytest.mark.slow
def test_every_module_imports_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Installed alone into an empty folder; the dependencies come from this environment."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    _run([*pip, str(target), str(wheel)], cwd=tmp_path)
    # -S leaves out .pth files, the editable install's among them; the folder itself is added.
    start = f"import sys; sys.path += {site.getsitepackages()!r}\n"
    out = _run([sys.executable, "-S", "-c", start + _IMPORT_ALL], cwd=tmp_path, path=target)
    result = json.loads(out.splitlines()[-1])
    assert Path(result["file"]).is_relative_to(target)
    assert set(result["modules"]) == _modules()
    assert result["stray"] == []
