"""Which files come first where several processes share them: those of minutes, or one would be the last."""

import pytest

LONG = ("test_train", "test_repair", "test_build", "test_overfit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
