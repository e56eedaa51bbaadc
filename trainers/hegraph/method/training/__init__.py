"""Training and scoring: batches, schedule, loop, checkpoints, memory, accuracy."""
