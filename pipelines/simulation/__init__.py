"""MuJoCo scenes, arm kinematics and the headless renderer: the built-in corpus and the simulated robot stand on it."""
