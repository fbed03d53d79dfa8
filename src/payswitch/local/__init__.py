"""The whole system on one machine: `payswitch up`."""
