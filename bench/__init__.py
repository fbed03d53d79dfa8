"""Benchmarks. Each runs a baseline and candidates in turns, and writes a table, a JSON file and a
picture."""
