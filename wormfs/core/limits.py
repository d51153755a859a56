"""Every limit of the system, in one place."""

NAME_MAX_BYTES = 255
TARGET_MAX_BYTES = 4095
XATTR_NAME_MAX_BYTES = 255
XATTR_VALUE_MAX_BYTES = 64 * 1024
LINK_MAX = 65_000
FILE_SIZE_MAX_BYTES = 1 << 53
NUMBER_MAX = (1 << 63) - 1
"""Of anything that the metadata keeps: SQLite's integers end there."""

CHUNK_SIZE_DEFAULT_BYTES = 1 << 20
CHUNK_SIZE_MAX_BYTES = 4 << 20
CHUNK_ALIGNMENT_BYTES = 64
CHECKSUM_BLOCK_BYTES = 16 * 1024
STRIPE_WIDTH_MAX = 32
STRIPE_SIZE_MAX_BYTES = 32 << 20

INLINE_MAX_BYTES = 64 * 1024
"""Extents of one stripe's range that the metadata may hold; past it the stripe is rewritten.

A file no longer than this lives wholly inside the metadata.
"""

RECALL_LIMIT_S = 20.0
"""A session that leaves a recall unanswered for so long loses its leases, however often it renews them."""

LISTING_PAGE_DEFAULT = 1_000
FILE_MAP_PAGE_DEFAULT = 256
ALLOCATE_MAX = 64
ROOT_INODE = 1
