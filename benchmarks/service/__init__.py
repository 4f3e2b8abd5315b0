"""An endpoint over a real PostgreSQL behind a real HTTP server, written by hand and with sdax.

`throughput.py`, beside this package, measures it. In the order of reading: `work` is what a request
does, `by_hand` and `with_sdax` are the two ways to hold it together, `server` is the process that
serves one of them; `postgresql`, `database`, `launch`, `load` and `hang_up` are what the
measurement needs.
"""
