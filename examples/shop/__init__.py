"""A small shop: the parts of the endpoint that ``examples/endpoint.py`` shows."""
