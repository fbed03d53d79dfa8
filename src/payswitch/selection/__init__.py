"""Which processor new payments go to, and the health check behind it."""
