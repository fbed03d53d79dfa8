"""The way in: HTTP requests, their answers, the live page."""
