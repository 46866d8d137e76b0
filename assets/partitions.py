"""How work is divided: batches of arriving files, sources of robot episodes, recipes and robots."""

from __future__ import annotations

import dagster as dg

from pipelines.recipes import recipe_names

DEFAULT_RECIPE = "nano"
SIMULATED_EPISODES = "simulated"
SIMULATED_ROBOT = "sim"
REAL_ROBOTS = frozenset({"franka"})
"""Robots that stand in a room with people: nothing started from Dagster ever commands them to move."""

ingest_batches = dg.DynamicPartitionsDefinition(name="ingest_batch")
episode_sources = dg.DynamicPartitionsDefinition(name="episode_source")
recipes = dg.StaticPartitionsDefinition(recipe_names())
robots = dg.StaticPartitionsDefinition([SIMULATED_ROBOT, *sorted(REAL_ROBOTS)])


def add_keys(instance: dg.DagsterInstance, definition: dg.DynamicPartitionsDefinition, keys: list[str]) -> list[str]:
    """Make `keys` known to Dagster; returns those that were new."""
    assert definition.name is not None
    known = set(instance.get_dynamic_partitions(definition.name))
    new = [key for key in keys if key not in known]
    if new:
        instance.add_dynamic_partitions(definition.name, new)
    return new
