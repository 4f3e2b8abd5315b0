"""An endpoint over a real PostgreSQL behind a real HTTP server, written by hand and with sdax.

`throughput.py` and `tail_latency.py`, beside this package, measure it. In the order of reading:
`work` is what a request does, `by_hand` and `with_sdax` are the two ways to hold it together,
`upstream` is a service that `with_upstream` asks as well, `server` is the process that serves one
of them; `postgresql`, `database`, `launch`, `load`, `open_load` and `hang_up` are what the
measurements need.
"""
