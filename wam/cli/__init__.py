"""Floor 5: the command line, one short file a verb."""
