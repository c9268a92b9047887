"""Floor 4: the published recipes, one file a paper, from a config to records."""
