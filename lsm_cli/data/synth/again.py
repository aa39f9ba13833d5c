"""A world that `lsm synth` wrote, drawn again from what its truth.json says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lsm_cli.data.synth.world import Drawn, draw_world
from lsm_cli.data.synth.worlds import find_world
from lsm_cli.errors import InputError


def redraw(folder: Path) -> Drawn:
    """The world behind a folder, with its slates.

    Raises:
        InputError: the folder is no world, or one without slates.
    """
    file = folder / "truth.json"
    try:
        truth = json.loads(file.read_text())
        world, users, seed = truth["world"], truth["users"], truth["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}: not a world (no readable truth.json); `lsm synth --out {folder} --slate 5` makes one"
        ) from None
    if "slates" not in truth:
        raise InputError(
            f"{folder}: its requests have one candidate each, so there is nothing to choose; make the world with "
            "`lsm synth --slate 5`"
        )
    return draw_world(replace(find_world(world), **truth["options"]), users, seed, truth["slates"]["candidates"])
