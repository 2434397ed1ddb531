"""A locked corpus -> what a training run sees, in its order.

order.py     which sample stands at which position: a pure function, in closed form
samples.py   lock and shards -> Stream: the sample at any position, read in place and checked
overlay.py   images left out or weighted, without rewriting a shard
cache.py     shards that lie elsewhere, kept here while they are needed
feed.py      Stream, or several blended -> batches, where a run stands, and the proof of what it saw
"""

from pmd.errors import BadRequest, Busy, Damaged, PmdError, Refused
from pmd.stream.feed import Batch, Blend, Captioned, Feed, Gather, Proof, Remainder, Source, merged, prove
from pmd.stream.order import Mix, Order, Places, keyed, keyed_each, mix_of, mixed, tempered
from pmd.stream.overlay import Overlay, part, without, write_overlay
from pmd.stream.samples import Caption, Damage, Identity, Sample, Stored, Stream, Unit, Visit

__all__ = [
    "BadRequest",
    "Batch",
    "Blend",
    "Busy",
    "Caption",
    "Captioned",
    "Damage",
    "Damaged",
    "Feed",
    "Gather",
    "Identity",
    "Mix",
    "Order",
    "Overlay",
    "Places",
    "PmdError",
    "Proof",
    "Refused",
    "Remainder",
    "Sample",
    "Source",
    "Stored",
    "Stream",
    "Unit",
    "Visit",
    "keyed",
    "keyed_each",
    "merged",
    "mix_of",
    "mixed",
    "part",
    "prove",
    "tempered",
    "without",
    "write_overlay",
]
