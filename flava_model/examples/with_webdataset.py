"""webdataset: one of its pipelines, with our order and checks at its head.

python -m flava_model.examples.with_webdataset CORPUS
"""

# webdataset makes its names at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import argparse

import webdataset as wds

from flava_model.doors import Samples
from pmd.stream import Feed, Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    given = parser.parse_args()

    feed = Feed(Stream(given.corpus), batch=8)
    pipeline = wds.DataPipeline(
        Samples(feed),
        wds.decode("rgb8"),
        wds.to_tuple("__key__", "jpg", "txt"),
        wds.batched(feed.share, partial=False),
    )
    for keys, pictures, captions in wds.WebLoader(pipeline, batch_size=None, num_workers=1):
        for key, picture, caption in zip(keys, pictures, captions, strict=True):
            print(key, picture.shape, caption, sep="\t")


if __name__ == "__main__":
    main()
