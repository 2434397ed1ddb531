"""order: which samples a rank of a training run sees from a position on; a look at pmd/stream.

lock.json --Stream--> positions p with p % world == rank --> position, key
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pmd.errors import BadRequest
from pmd.stream import Stream

AT_A_TIME = 4_096  # positions


def order(
    stream: Stream, *, epoch: int, world: int, rank: int, start: int, count: int
) -> Iterator[tuple[int, str]]:
    """(position, key) of the first `count` samples of a rank from position `start` of an epoch on; fewer at
    its end. Raises BadRequest.
    """
    if not 0 <= rank < world:
        raise BadRequest(f"--rank {rank} of --world {world}: ranks are 0 to {world - 1}")
    if start > len(stream):
        raise BadRequest(f"--start {start:,}: an epoch has {len(stream):,} samples")
    first = start + (rank - start) % world
    positions = range(first, len(stream), world)[:count]
    for at in range(0, len(positions), AT_A_TIME):
        some = np.array(positions[at : at + AT_A_TIME])
        yield from zip(some.tolist(), stream.keys(epoch, some), strict=True)


def corpus_of(lock: str) -> Path:
    """The folder of a corpus, told by itself or by its lock."""
    path = Path(lock)
    return path.parent if path.name == "lock.json" else path
