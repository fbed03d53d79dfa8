"""The benches: each runs its baseline and its candidates by turns in one run, and writes a table, a
JSON file and a picture."""
