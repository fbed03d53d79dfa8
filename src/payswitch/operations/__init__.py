"""The operators' side: overview, status, orders, reconciliation."""
