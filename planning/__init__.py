"""The world model in use: planners, control loop, safety gate, robots, bundles, the agent and their evaluation (floor 3)."""
