"""What operators see and order."""
