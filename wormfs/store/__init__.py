"""Chunks on disks: layout, buffers, durable writes in shared rounds, verified reads, disk health."""
