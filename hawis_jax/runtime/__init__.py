"""What runs a stage: steps, checkpoints, metrics, processes, devices."""
