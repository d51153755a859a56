"""Generated protobuf and gRPC stubs of proto/wormfs/v1; made by `make proto`."""
