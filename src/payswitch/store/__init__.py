"""Everything that speaks to Redis as Redis."""
