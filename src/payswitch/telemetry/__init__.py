"""Logs, metrics, traces and the heartbeat of a process."""
