"""What is known of payments, in Redis: accepted, claimed, tried, settled, dead."""
