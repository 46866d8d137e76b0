"""Networks and preprocessing of V-JEPA 2 in pure torch (floor 1: imports nothing of this project but itself)."""
