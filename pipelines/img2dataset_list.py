"""What img2dataset lists beside a tar, 00042.parquet, and the tar does not hold: rows that failed.

key, url, caption, status, error_message --those of no sample in the tar--> Found, with a Reason of ours
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.img2dataset import reason_of
from pmd.errors import Damaged
from pmd.fetch.client import clean
from pmd.foreign import MOST_NAME, Found, clean_caption, clean_url, row
from pmd.records import Reason, meta_json

AT_A_TIME = 4_096  # rows

_LISTED = ("key", "url", "caption", "status", "error_message")
_SIZES = {"image too small": Reason.IMAGE_SMALL, "aspect ratio too large": Reason.IMAGE_ASPECT}
_SIZES |= {"image area too large": Reason.DECODE_LIMIT}


def lost(path: Path, there: set[str], *, first: int) -> Iterator[Found]:
    """What img2dataset lists and the tar does not hold. Raises Damaged where the list cannot be read.

    there: names of the tar's samples. first: the number of the first one that is told here.
    """
    number = first
    try:
        with pq.ParquetFile(path) as opened:
            columns = [name for name in _LISTED if name in opened.schema_arrow.names]
            if not {"key", "status"} <= {*columns}:
                return  # somebody else's, of whatever meaning
            for batch in opened.iter_batches(AT_A_TIME, columns=columns, use_threads=False):
                for told in batch.to_pylist():
                    name = str(told["key"])[:MOST_NAME]
                    if name not in there:
                        yield _found(name, told, number)
                        number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(
            f"{path}: not a list of img2dataset ({clean(str(error))}). Where that was stopped while it wrote "
            "it, delete the list: the tar is then read without it"
        ) from None


def _found(name: str, told: dict[str, Any], number: int) -> Found:
    caption = told.get("caption")
    caption = clean_caption(caption) if isinstance(caption, str) else None
    status, error, url = told["status"], told.get("error_message"), told.get("url")
    if status == "success":
        reason = Reason.NOT_IN_ARCHIVE
        status, error = "failed_to_download", "img2dataset lists it as stored, the tar does not hold it"
    elif status == "failed_to_resize":
        reason = _SIZES.get(str(error), Reason.DECODE_FAILED)
    else:
        status, reason = "failed_to_download", reason_of(str(error))
    columns = row(
        number=number,
        caption=None if isinstance(caption, Reason) else caption,
        reason=reason,
        detail=clean(str(error)) if error is not None else None,
        url=clean_url(url),
        meta=meta_json(key=name),
    )
    return Found(name, columns | {"status": status})
