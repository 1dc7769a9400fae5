"""The ZeroMQ interface of the Processing Service: requests, events, keys and the client."""
