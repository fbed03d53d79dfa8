"""The chaos run: the real system under load and faults, then an audit of every single payment.

`plan` makes the schedule of faults (pure, by seed), `system` runs the parts, `clients` pay,
`inject` breaks things, `watch` looks on, `audit` judges (pure), `report` and `timeline` show it.
"""
