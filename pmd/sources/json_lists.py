"""JSON files whose rows are the elements of lists, read as a stream in the memory of one row.

    {"info": {...}, "images": [{...}, {...}], "annotations": [{...}, {...}]}
                     name       element        name           element
    [{...}, {...}]
     element          of a list at the top level, which has no name

The elements are built here, from the parser's plain events. Its own way of giving elements by their path
writes that path out at every opening bracket: 80 KB of "[" keep it busy for a minute.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import ijson

from pmd.sources.part import ROW_BYTES, Unreadable, excerpt

BLOCK_BYTES = 16 << 10  # fed to the parser at a time, so how exactly damage is located

_MAX_DEPTH = 100  # brackets open at a time; published files have five


def elements(blocks: Iterable[bytes], *names: str) -> Iterator[tuple[str, Any]]:
    """(name, element) for each element of the lists that the top-level object has under `names`, in order.

    Without names: ("", element) for each element of the list that is the top level itself.

    Raises Unreadable where the JSON cannot be read on, and at the end of a file that holds none of the lists.
    All elements before that have been yielded by then.
    """
    found = False
    name = key = ""
    depth = 0  # brackets open around the element in hand
    in_object = in_list = False  # the top level is an object; directly inside one of the lists
    at_top = not names  # the list is the top level
    unfinished: list[Any] = []  # the element in hand: its containers that are still open, outermost first
    waiting = 0  # bytes since an element, or at least a value outside all elements, was last complete
    for events, size in _events(blocks):
        waiting = waiting + size if unfinished or not events else 0
        if waiting > ROW_BYTES:
            raise Unreadable(f"expected a JSON value of at most {ROW_BYTES} bytes, found a longer one")
        for event, value in events:
            if event == "map_key":
                key = value
            elif event == "end_map" or event == "end_array":
                if not unfinished:
                    depth -= 1
                    in_list = False
                elif len(unfinished) > 1:
                    unfinished.pop()
                else:
                    waiting = 0
                    yield name, unfinished.pop()
            else:
                opens = event == "start_map" or event == "start_array"
                if opens:
                    value = {} if event == "start_map" else []
                    if depth + len(unfinished) >= _MAX_DEPTH:
                        raise Unreadable(f"expected at most {_MAX_DEPTH} nested JSON values, found more")
                if unfinished:
                    container = unfinished[-1]
                    if isinstance(container, dict):
                        container[key] = value
                    else:
                        container.append(value)
                    if opens:
                        unfinished.append(value)
                elif in_list and opens:
                    unfinished.append(value)
                elif in_list:
                    yield name, value
                elif opens:
                    in_object = event == "start_map" if depth == 0 else in_object
                    depth += 1
                    if event == "start_array" and depth == 1 and at_top:
                        found = in_list = True
                    elif event == "start_array" and depth == 2 and in_object and key in names:
                        found = in_list = True
                        name = key
    if not found and at_top:
        raise Unreadable("expected a JSON list, found none")
    if not found:
        raise Unreadable(f"expected a JSON object with a list {' or '.join(map(repr, names))}, found none")


def _events(blocks: Iterable[bytes]) -> Iterator[tuple[list[tuple[str, Any]], int]]:
    """The parser's events for each block, and the size of the block."""
    events: list[tuple[str, Any]] = ijson.sendable_list()
    # use_float: without it a number of 5,000 digits leaves broken objects in the list of events.
    parser: Any = ijson.basic_parse_coro(events, use_float=True)
    position = 0
    fault: Exception | None = None
    for block in blocks:
        try:
            parser.send(block)
        except (ijson.JSONError, ValueError) as error:
            fault = error
        yield events, len(block)
        events.clear()
        if fault:
            raise Unreadable(f"{_words(fault)}, in the {len(block)} bytes from byte {position}")
        position += len(block)
    try:
        parser.close()
    except (ijson.JSONError, ValueError):
        # Closing may have given one event more: the number that the end cut short. It is not yielded.
        raise Unreadable(f"expected more JSON, found the end of the file at byte {position}") from None
    yield events, 0


def _words(error: Exception) -> str:
    """The parser's complaint on one line: its first line says what, its second shows the text around."""
    message = error.args[0] if error.args else ""
    if isinstance(message, bytes):
        message = message.decode(errors="replace")
    what, _, around = str(message).partition("\n")
    return f"{what.rstrip('.')} near {excerpt(around.partition(chr(10))[0].strip())}"
