"""Streams and gRPC between mounts, nodes, programs and etcd."""

import os

# gRPC writes each try to connect to standard error, many a second while a certificate is wrong. It reads
# this when it is imported; what its calls end with is told by our own errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
