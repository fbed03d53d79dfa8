"""From the claim of a payment to its settlement."""
