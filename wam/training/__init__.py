"""Floor 2: the training state, optimizers, sharding, the step and the loop."""
