"""Floor 3: training algorithms, each read from top to bottom; none imports another."""
