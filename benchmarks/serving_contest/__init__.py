"""The contest of servers: one network, three servers, the same client and the same bodies.

network     the network, its engines, images and what the engines answer to them
questions   requests as bytes, and what makes an answer the right one
connection  a keep-alive connection of the client
client      clients' processes, and the process that runs the engine alone
peers       what the other servers need: their packages, in environments of their own
servers     servers' processes: started, stopped while others have their turn, ended
rounds      who takes a turn when
report      figures, ratios round by round, and what they say in words
triton_model.py, fastapi_app.py   what the peers' users would write
"""
