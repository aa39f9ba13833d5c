from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> None:
    """Hundreds of small stores: whether they survive a power cut is not tested here."""
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda _: None)
