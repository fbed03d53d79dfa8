"""`python -m payswitch` is `payswitch`."""

from __future__ import annotations

from payswitch.cli import main

main(prog_name="payswitch")
