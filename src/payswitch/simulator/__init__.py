"""A payment processor for development and tests."""
