"""The training engine: processes, lease, schedules, DeepSpeed behind a small protocol, checkpoints, guard and health."""
