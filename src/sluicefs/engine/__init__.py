"""The compiled room: bytes only. Spans, blocks, read-ahead, write coalescing; no names, no S3, no FUSE."""

from sluicefs.engine.blocks import Block, BlockCache, BlockMap
from sluicefs.engine.extents import DirtyMemory, Extents
from sluicefs.engine.reader import Reader
from sluicefs.engine.spans import SpanSet

__all__ = ["Block", "BlockCache", "BlockMap", "DirtyMemory", "Extents", "Reader", "SpanSet"]
