"""The scored run of the Rinha de Backend 2025, natively: `make rinha SCENARIO=preview|final`.

`scenario` (pure) says who pays when and what the processors are set to, `score` (pure) what it is
worth, `users` pays in a process of its own, `referee` sets the stages and audits, `run` ties them
together. `processes` and `containers` bring up what is measured; `result`, `picture` and `board`
show it. `k6.js` plays the same scenarios with k6 and scores them with `score.js`.
`entry` writes what the challenge asks of an entry.
"""
