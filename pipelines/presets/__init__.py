"""Recipe files (YAML)."""
