"""Connections, and how their bytes come in and go out.

listening           sockets, bound before anything else is done
connection          uvicorn's, with deadlines, limits, and refusals in our words
express_connection  one that answers lone requests in its own callbacks
parsing, reading    how bytes come in: through a parser, or straight to their place
transport           how they go out; one_piece: an answer in one write
hearing_out         the last connections, before a server closes
"""
