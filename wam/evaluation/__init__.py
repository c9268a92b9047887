"""Floor 3: measurements: tasks and metrics, connectivity, Pareto fronts, intervals."""
