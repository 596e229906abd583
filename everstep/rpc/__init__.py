"""gRPC as Everstep speaks it: channel and server options, errors on the wire, serving."""
