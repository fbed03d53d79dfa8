"""The selection of the processor for new payments, and the health check behind it."""
