"""What a corpus file may choose about a reader: which of a publisher's texts become captions, and so on."""

from pydantic import BaseModel, ConfigDict


class Rules(BaseModel):
    """The choices of [source.NAME] beside those that all sources have.

    A reader with choices has a class of its own, with a default and the evidence for it at each. Every choice
    decides which bytes come out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
