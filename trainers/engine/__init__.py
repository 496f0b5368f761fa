"""The training engine: the step, the players, averages, meters, sharding, stopping. Read `step` first."""
