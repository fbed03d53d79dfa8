"""Payswitch: a payment dispatcher that pays exactly once through the cheapest healthy processor."""
