"""Weight files as people handle them: found by path or by artefact, looked into, converted."""
