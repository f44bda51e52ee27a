from collections.abc import Callable

from typing_extensions import Self, disjoint_base

from sluicefs.engine.blocks import Block, BlockMap

@disjoint_base
class Reader:
    size: int
    def __new__(
        cls,
        blocks: BlockMap,
        size: int,
        fetch: Callable[[Block, bool], None],
        *,
        largest_block: int = ...,
        largest_window: int = ...,
        whole: int = ...,
    ) -> Self: ...
    def try_read(self, offset: int, length: int) -> memoryview | bytes | None: ...
    def demand(self, offset: int, length: int) -> list[Block]: ...
    def collect(self, offset: int, length: int, seconds: float) -> memoryview | bytes | None: ...
    def close(self) -> None: ...
