"""`python -m payswitch` is `payswitch`."""

from __future__ import annotations

from payswitch.cli.main import main

main(prog_name="payswitch")
