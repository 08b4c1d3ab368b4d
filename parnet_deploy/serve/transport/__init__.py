"""What HTTP and gRPC share.

asked    what there is to say of a request: its id, its sizes, its times
key      the API key
limits   the largest message
budget   bytes of all bodies in memory
metrics  both, for Prometheus
traffic  what is under way, and whether the server is ending
logs     lines of text or JSON, with the request's id
"""
