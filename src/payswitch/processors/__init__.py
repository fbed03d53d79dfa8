"""Calls of the payment processors, and the meaning of their answers."""
