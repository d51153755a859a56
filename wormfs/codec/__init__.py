"""Pure computation on chunks: erasure codes, checksums and the chunk file's header."""
