"""A soak of ``parnet-deploy serve``: many requests of every kind, and nothing lost, nothing grown.

network   the network that is served, images, and what its engine answers to each
asking    requests of every kind, and what makes an answer to them the right one
client    a client's process: asks, compares, counts
watching  the server's memory, files and threads, while it is asked
judging   what must hold in the end
running   the server, the clients and the watcher put together
report    the result in words
"""
