"""The house has floors: imports go down only, and heavy or foreign packages stay in their rooms."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "models": {"models"},
    "pipelines": {"models", "pipelines"},
    "planning": {"models", "pipelines", "planning"},
    "assets": {"models", "pipelines", "planning", "assets"},
}
FLOORS = set(MAY_IMPORT)
NEVER = {"torchvision", "timm", "decord"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at top level?) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.module, id(node) in top))
    return found


def source_files() -> list[tuple[str, Path]]:
    files = [(floor, path) for floor in sorted(FLOORS) for path in sorted((ROOT / floor).rglob("*.py"))]
    assert len(files) > 20
    return files


def test_imports_go_down_only() -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {module}"
        for floor, path in source_files()
        for module, _ in imports(path)
        if (root := module.split(".")[0]) in FLOORS and root not in MAY_IMPORT[floor]
    ]
    assert not up, up


def test_dagster_stays_on_the_top_floor() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for floor, path in source_files()
        for module, _ in imports(path)
        if floor != "assets" and module.split(".")[0].startswith("dagster")
        and not (module == "dagster_pipes" and path.name == "reporting.py")
    ]  # fmt: skip
    assert not wrong, wrong


def test_deepspeed_is_imported_in_one_file() -> None:
    where = {str(path.relative_to(ROOT)) for _, path in source_files() for module, _ in imports(path) if module.split(".")[0] == "deepspeed"}
    assert where <= {"pipelines/training/engine.py"}, where


def test_nothing_heavy_is_imported_when_definitions_load() -> None:
    heavy = {"torch", "faiss", "mujoco", "cv2", "sklearn", "matplotlib", "deepspeed", "av"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module} at the top"
        for floor, path in source_files()
        for module, top in imports(path)
        if floor == "assets" and top and module.split(".")[0] in heavy
    ]
    assert not wrong, wrong


def test_unwanted_packages_are_never_imported() -> None:
    wrong = [f"{path}: {module}" for _, path in source_files() for module, _ in imports(path) if module.split(".")[0] in NEVER]
    assert not wrong, wrong
