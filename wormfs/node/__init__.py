"""wormfs-node: the process that serves disks, and on node 1 the metadata."""
