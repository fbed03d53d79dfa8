"""HTTP/1.1 by hand where it pays; it knows no payment."""
