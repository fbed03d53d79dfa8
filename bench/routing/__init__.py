"""Plays policies of routing in simulated time, against an optimum that knows the future."""
