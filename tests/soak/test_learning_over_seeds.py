"""Long campaign: the whole chain over three training seeds, every planning row in full. `make soak` runs it (about an hour).

Prints one table; asserts what the demo promises, on seeds that nothing was tuned on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SEEDS = (101, 102, 103)


def recipe_for(folder: Path, seed: int) -> str:
    """Write the nano recipe with another training seed, fresh planning episodes and every comparison row in full."""
    recipe = yaml.safe_load((ROOT / "pipelines/presets/nano.yaml").read_text())
    name = f"nano-seed{seed}"
    planning = dict(recipe.get("planning") or {})
    episodes = planning.get("episodes", 50)
    recipe.update(name=name, seed=seed, planning=planning | {"comparison_episodes": episodes, "seed": 5000 + seed})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return name


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("seeds")
    recipes, store = folder / "recipes", Path(os.environ.get("TUBELET_SOAK_STORE", folder / "store"))
    recipes.mkdir()
    names = {seed: recipe_for(recipes, seed) for seed in SEEDS}
    found = {}
    for seed, name in names.items():
        subprocess.run(
            [sys.executable, "tubelet.py", "demo", "--store", str(store), "--recipe", name],
            cwd=ROOT, env={**os.environ, "TUBELET_RECIPES": str(recipes)}, check=False,
        )  # fmt: skip
        found[seed] = json.loads((store / "report" / "report.json").read_text())
        assert found[seed]["recipe"] == name, f"the run of seed {seed} wrote no report; the one there is of {found[seed]['recipe']}"
    return found


@pytest.mark.soak
def test_every_seed_meets_its_thresholds(reports: dict[int, dict]) -> None:
    for seed, numbers in reports.items():
        print(f"\nseed {seed}")
        for row in numbers["verdict"]:
            print(f"  {'ok' if row['passed'] else 'BELOW':<6} {row['name']:<50} {row['measured']:<36} ({row['threshold']})")
    failed = {seed: [row["name"] for row in numbers["verdict"] if row["binding"] and not row["passed"]] for seed, numbers in reports.items()}
    assert not any(failed.values()), failed


@pytest.mark.soak
def test_planning_targets_hold_on_average(reports: dict[int, dict]) -> None:
    rates: dict[str, list[float]] = {}
    for numbers in reports.values():
        for row in numbers["planning"]["rows"]:
            rates.setdefault(row["arm"], []).append(row["success_final"])
    for arm, values in rates.items():
        print(f"  {arm:<28} {sum(values) / len(values):.2f}   by seed {', '.join(f'{value:.2f}' for value in values)}")
    assert sum(rates["default"]) / len(SEEDS) >= 0.80
    assert all(sum(values) / len(SEEDS) >= 0.70 for arm, values in rates.items() if arm.startswith("cem"))
