"""The operator's commands, one module each: loaded only when they are run."""
