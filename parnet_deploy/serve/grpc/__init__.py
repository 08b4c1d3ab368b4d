"""gRPC: the same protocol and the same data plane, for clients that prefer it.

wire       a request's bytes, looked through before they are parsed
translate  the protocol's messages as requests and answers, checked as those of HTTP
documents  what a server and a model say of themselves, as messages
methods    which method is answered by what
call       one call: what it says of itself, and what came of it
guard      what stands around every method: key, limits, deadlines, errors as statuses, the log
status     refusals as statuses
server     listening, and the end

Messages and the service's name are those of NVIDIA's own client (tritonclient), so that it works
here unchanged. What it has beyond the protocol (shared memory, repository control, streams, trace
and log settings) is not offered.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else clients' faults are lines beside our log

from parnet_deploy.serve.grpc.server import Front, start  # the library reads that once

__all__ = ["Front", "start"]
