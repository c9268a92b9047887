"""Questions and their answers: one folder an experiment, one ledger a folder. See README.md."""
