"""The HTTP endpoint: payments, queries, the live page."""
