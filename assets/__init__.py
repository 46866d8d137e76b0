"""What Dagster sees: assets, checks, partitions, automation, resources and launchers. No torch at import."""
