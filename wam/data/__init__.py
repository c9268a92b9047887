"""Data: files into strings, strings into token rows, rows into batches."""
