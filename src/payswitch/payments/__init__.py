"""Payments in Redis: accepted, claimed, tried, settled, dead."""
