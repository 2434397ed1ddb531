"""A locked corpus -> what a training run sees, in its order.

order.py     which sample stands at which position: a pure function, in closed form
samples.py   lock and shards -> Stream: the sample at any position, read in place and checked
overlay.py   images left out or weighted, without rewriting a shard
cache.py     shards that lie elsewhere, kept here while they are needed
feed.py      Stream, or several blended -> batches, where a run stands, and the proof of what it saw
"""

from pmd.stream.feed import Batch, Blend, Feed, Gather, Proof, Remainder, Source, merged, prove
from pmd.stream.order import keyed, mix_of, tempered
from pmd.stream.overlay import Overlay, part, without, write_overlay
from pmd.stream.samples import Damage, Identity, Sample, Stream, Unit

__all__ = [
    "Batch",
    "Blend",
    "Damage",
    "Feed",
    "Gather",
    "Identity",
    "Overlay",
    "Proof",
    "Remainder",
    "Sample",
    "Source",
    "Stream",
    "Unit",
    "keyed",
    "merged",
    "mix_of",
    "part",
    "prove",
    "tempered",
    "without",
    "write_overlay",
]
