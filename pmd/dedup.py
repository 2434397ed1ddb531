"""Images that a corpus has already: byte for byte, or to the eye. The first one stays.

    FETCHED table --looks--> two numbers for each kept image: of its bytes, of how it looks
    all looks, in order of source, file and row --repeated--> which rows repeat an earlier one, and how

Two images are the same when their served bytes are (sha256), and look the same when their perceptual hashes
are equal, as those of the same bytes are. A picture with hardly any structure (a blank page, a plain sky) has
a hash that says nothing, so it is compared by its bytes alone. Numbers have 64 bits: over 70 million images
the odds that two different files share one are 1 in 7,500.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Of the 64 bits of a perceptual hash, those that must be set: a structured picture has 32, a plain one 1.
LEAST_BITS = 20

Numbers = np.ndarray[Any, Any]

LOOKS = pa.schema([("row", pa.int32()), ("exact", pa.uint64()), ("perceptual", pa.uint64())])


def looks(fetched: pa.Table, kept: Sequence[bool]) -> pa.Table:
    """The LOOKS of the kept images of a FETCHED table; perceptual is null where it says nothing."""
    rows = pa.array(np.flatnonzero(np.asarray(kept, bool)).astype(np.int32))
    images = fetched.select(["sha256", "phash"]).take(rows)
    exact = _numbers(images["sha256"])
    perceptual = _numbers(images["phash"])
    says_nothing = np.bitwise_count(perceptual) < LEAST_BITS
    columns = [rows, pa.array(exact), pa.array(perceptual, mask=says_nothing)]
    return pa.table(columns, schema=LOOKS)


def _numbers(hexadecimal: pa.ChunkedArray) -> Numbers:
    """The first 16 digits of each as a number; 0 where there are none."""
    digits = pc.fill_null(pc.utf8_slice_codeunits(hexadecimal, 0, 16), "0" * 16)
    data = bytes.fromhex("".join(digits.to_pylist()))
    return np.frombuffer(data, ">u8").astype(np.uint64)


@dataclass(frozen=True)
class Repeats:
    """Which of the images looked at repeat an earlier one, by their places in the order of all.

    Many are in both lists, and the first one of an image need not be the same in both.
    """

    exact: Numbers  # places
    exact_of: Numbers  # of each: the place of the first one
    perceptual: Numbers
    perceptual_of: Numbers


def repeated(tables: Sequence[pa.Table]) -> Repeats:
    """The repeats among some LOOKS tables, taken one after the other."""
    looked = pa.concat_tables([*tables, LOOKS.empty_table()]).combine_chunks()
    exact, exact_of = _repeats(looked["exact"].to_numpy())
    places = np.flatnonzero(looked["perceptual"].is_valid().to_numpy())
    near, near_of = _repeats(looked["perceptual"].fill_null(0).to_numpy()[places])
    return Repeats(exact, exact_of, places[near], places[near_of])


def _repeats(values: Numbers) -> tuple[Numbers, Numbers]:
    """The places of values that occur earlier, in order, and the place of the first one of each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    again = np.zeros(len(values), bool)
    again[1:] = ordered[1:] == ordered[:-1]
    first_of_run = np.maximum.accumulate(np.where(again, 0, np.arange(len(values))))
    places, firsts = order[again], order[first_of_run[again]]
    by_place = np.argsort(places, kind="stable")
    return places[by_place], firsts[by_place]
