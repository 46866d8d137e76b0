"""Robot episodes in one schema, whatever they were recorded with: frames, pose7 and physical time."""
