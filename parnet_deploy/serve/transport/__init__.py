"""What HTTP and gRPC share.

limits   the largest message
budget   bytes of all bodies in memory
traffic  what is under way, and whether the server is ending
logs     lines of text or JSON, with the request's id
"""
