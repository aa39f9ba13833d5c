"""Writing a drawn world to disk, in the formats in which logs usually arrive.

logs/video/YYYY-MM.csv.gz   one file a month; unix seconds; three category levels, spelled as the ads spell them
logs/article.csv            time as text; two category levels of the reader's own, aligned by taxonomy.csv
logs/ads.parquet            clicks and orders on ads, milliseconds
impressions.parquet         one row per request: ad, scenario, labels, order value, true probabilities
taxonomy.csv                the articles' sections and topics -> the shared categories
ads_truth.parquet           what each ad adds to the logit of each target: never an input, only for checking
truth.json                  the mechanism with all its numbers, and what the true probabilities score
dataset.toml                the description that `lsm build-sequences` reads
ads_only.toml               the same without the content's logs and the alignment, in worlds with a planted cause
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lsm_cli.data.aside import replacing
from lsm_cli.data.synth.rows import ACTIONS, DOMAINS, NONE, Events, Requests, ancestor
from lsm_cli.data.synth.slates import POLICY, Slates, candidates
from lsm_cli.data.synth.world import Drawn, chances, past
from lsm_cli.data.synth.worlds import World
from lsm_cli.errors import InputError

INDUSTRIES = ("games", "beauty", "travel", "finance", "food", "sports", "autos", "home", "fashion", "education")
AD_LEVELS = ("industry", "segment", "product")
MARK = "truth.json"  # a folder with this file is a world, and may be replaced


def write_world(drawn: Drawn, out: Path, scores: dict[str, Any], command: str, overwrite: bool = False) -> int:
    """Write all files of a world aside and rename the folder last.

    Args:
        scores: what the true probabilities score, for truth.json.
        command: how the world was made, for dataset.toml.

    Returns:
        Bytes written.

    Raises:
        InputError: `out` is not empty and may not be replaced.
    """
    with replacing(out, "synth", lambda: check_free(out, overwrite)) as folder:
        (folder / "logs" / "video").mkdir(parents=True)
        events = drawn.events
        events = events.take(np.lexsort((events.user, events.time)))  # a log is written as things happen
        logs = [events.take(events.domain == code) for code in range(len(DOMAINS))]
        _ad_log(drawn, logs[0]).write_parquet(folder / "logs" / "ads.parquet")
        video = _video_log(drawn, logs[1])
        for (month,), part in video.group_by(pl.from_epoch("ts").dt.strftime("%Y-%m"), maintain_order=True):
            _write_gzip(part, folder / "logs" / "video" / f"{month}.csv.gz")
        _article_log(drawn, logs[2]).write_csv(folder / "logs" / "article.csv")
        impressions = _impressions(drawn) if drawn.slates is None else _slates(drawn, drawn.slates)
        impressions.write_parquet(folder / "impressions.parquet")
        ads = np.arange(len(drawn.catalogues["ad"].leaf))
        effects = {f"ad_{name}": effect for name, effect in drawn.ad_effect.items()}
        pl.DataFrame({"ad": _ids("ad", ads), **effects}).write_parquet(folder / "ads_truth.parquet")
        _alignment(drawn.world).write_csv(folder / "taxonomy.csv")
        (folder / MARK).write_text(json.dumps(_truth(drawn, scores), indent=2) + "\n")
        slates = drawn.slates is not None
        (folder / "dataset.toml").write_text(_description(drawn.world, command, slates))
        if drawn.world.ads_only:
            (folder / "ads_only.toml").write_text(_description(drawn.world, command, slates, content=False))
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def category_names(branching: tuple[int, int, int]) -> list[list[str]]:
    """Names of the nodes of each level, coarse to fine: games, games-2, games-2.5."""
    top = [INDUSTRIES[n] if n < len(INDUSTRIES) else f"industry{n}" for n in range(branching[0])]
    middle = [f"{name}-{n + 1}" for name in top for n in range(branching[1])]
    return [top, middle, [f"{name}.{n + 1}" for name in middle for n in range(branching[2])]]


def section_names(branching: tuple[int, int, int]) -> list[list[str]]:
    """The articles' own names of the two coarser levels: s03, s03t2."""
    top = [f"s{n:02d}" for n in range(branching[0])]
    return [top, [f"{name}t{n + 1}" for name in top for n in range(branching[1])]]


def _video_log(drawn: Drawn, rows: Events) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "uid": rows.user,
            "vid": _ids("v", rows.item),
            "ts": _epoch(drawn.world, rows.time),
            "act": _pick(ACTIONS, rows.action),
            **_levels(("c1", "c2", "c3"), category_names(drawn.world.branching), rows, drawn.world),
            "brand": _ids("brand", rows.brand),
            **_extras(drawn.world, rows),
        }
    )


def _article_log(drawn: Drawn, rows: Events) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "read_at": pl.from_epoch(pl.Series(_epoch(drawn.world, rows.time))).dt.strftime("%Y-%m-%d %H:%M:%S"),
            "reader": rows.user,
            "article": _ids("doc", rows.item),
            "action": _pick(ACTIONS, rows.action),
            **_levels(("section", "topic"), section_names(drawn.world.branching), rows, drawn.world),
            **_extras(drawn.world, rows),
        }
    )


def _extras(world: World, rows: Events) -> dict[str, pl.Series]:
    """Columns of content that only some worlds have."""
    found = {}
    if world.shared_scenarios:
        found["place"] = _pick(list(world.targets[0].scenario), rows.scenario)
    if world.channels:
        found["channel"] = _ids("channel", rows.channel)
    return found


def _ad_log(drawn: Drawn, rows: Events) -> pl.DataFrame:
    return pl.DataFrame({**_about_ads(drawn.world, rows), "action": _pick(ACTIONS, rows.action)})


def _impressions(drawn: Drawn) -> pl.DataFrame:
    order = np.lexsort((drawn.requests.user, drawn.requests.time))
    return pl.DataFrame(
        {
            **_about_ads(drawn.world, drawn.requests.take(order)),
            **{name: label[order].astype(np.int8) for name, label in drawn.label.items()},
            "order_value": drawn.value[order].astype(np.float32),
            **{f"p_{name}": p[order].astype(np.float32) for name, p in drawn.p.items()},
        }
    )


def _slates(drawn: Drawn, slates: Slates) -> pl.DataFrame:
    """The impressions, and from the test day on every candidate of a request; labels are known of what was shown."""
    size = slates.item.shape[1]
    plain = np.setdiff1d(np.arange(len(drawn.requests.user)), slates.request)
    request = np.concatenate([plain, np.repeat(slates.request, size)])
    place = np.concatenate([np.zeros(len(plain), np.int64), np.tile(np.arange(size), len(slates.request))])
    shown = place == np.concatenate([np.zeros(len(plain), np.int64), np.repeat(slates.shown, size)])
    propensity = np.concatenate([np.ones(len(plain)), slates.propensity.ravel()])
    could = candidates(drawn)
    p = chances(drawn, could, past(drawn, drawn.events, could))
    rows = Requests(
        **{name: np.concatenate([column[plain], getattr(could, name)]) for name, column in vars(drawn.requests).items()}
    )
    order = np.lexsort((place, rows.user, rows.time))

    def known(values: np.ndarray, dtype: type[np.generic]) -> pl.Series:
        found = pl.Series(values[request[order]].astype(dtype))
        return pl.select(pl.when(pl.lit(shown[order])).then(pl.lit(found))).to_series()

    return pl.DataFrame(
        {
            **_about_ads(drawn.world, rows.take(order)),
            **{name: known(label, np.int8) for name, label in drawn.label.items()},
            "order_value": known(drawn.value, np.float32),
            "propensity": propensity[order].astype(np.float32),
            **{f"p_{name}": np.concatenate([drawn.p[name][plain], p[name]])[order].astype(np.float32) for name in p},
        }
    )


def _slate_truth(drawn: Drawn, slates: Slates) -> dict[str, Any]:
    world = drawn.world
    return {
        "slates": {
            "candidates": slates.item.shape[1],
            "from": split_dates(world)["test"],
            "policy": POLICY,
        },
        "options": {"behaviours": world.behaviours, "impressions": world.impressions},
    }


def _about_ads(world: World, rows: Events | Requests) -> dict[str, Any]:
    return {
        "time_ms": _epoch(world, rows.time) * 1000,
        "user": rows.user,
        "ad": _ids("ad", rows.item),
        "scenario": _pick(list(world.targets[0].scenario), rows.scenario),
        **_levels(AD_LEVELS, category_names(world.branching), rows, world),
        "brand": _ids("brand", rows.brand),
    }


def _levels(
    columns: tuple[str, ...], names: list[list[str]], rows: Events | Requests, world: World
) -> dict[str, pl.Series]:
    return {
        column: _pick(names[level], ancestor(rows.leaf, level + 1, world.branching))
        for level, column in enumerate(columns)
    }


def _pick(names: Sequence[str], index: np.ndarray) -> pl.Series:
    return pl.Series(names, dtype=pl.String).gather(index)


def _ids(prefix: str, number: np.ndarray) -> pl.Series:
    """Raw ids as logs have them: a prefix and a number; null where there is none."""
    return pl.select(pl.when(pl.lit(number) != NONE).then(pl.format(prefix + "{}", pl.lit(number)))).to_series()


def _epoch(world: World, time: np.ndarray) -> np.ndarray:
    """Seconds since the world's start -> unix seconds."""
    return time + int(_start(world).timestamp())


def _write_gzip(frame: pl.DataFrame, file: Path) -> None:
    # no name and no time in the header, so that the bytes depend on the rows alone
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, 0) as packed:
        packed.write(frame.write_csv().encode())


def _alignment(world: World) -> pl.DataFrame:
    rows = []
    own, shared = section_names(world.branching), category_names(world.branching)
    fan = world.branching[1]
    for top, (name, meaning) in enumerate(zip(own[0], shared[0], strict=True)):
        rows.append(("article", name, meaning))
        rows += [
            ("article", f"{name}/{own[1][node]}", f"{meaning}/{shared[1][node]}")
            for node in range(top * fan, (top + 1) * fan)
        ]
    return pl.DataFrame(rows, schema=["domain", "path", "shared"], orient="row")


def _start(world: World) -> datetime:
    return datetime.fromisoformat(world.start).replace(tzinfo=UTC)


def split_dates(world: World) -> dict[str, str]:
    days = {"valid": world.valid, "test": world.test}
    return {split: f"{_start(world) + timedelta(days=day):%Y-%m-%d}" for split, day in days.items()}


_MORE = {
    "share": " share: S is the mean of what the behaviours say, by how much they count, in place of the sum.",
    "near": " near: behaviours that share that field with the ad count `times` as much.",
    "rhythm": " rhythm: times ((1 + cos(2 pi age / rhythm)) / 2)^2.",
    "meaning": " meaning: strength times what that field's value says about the ad's, a hidden table.",
    "through": " through: the mean, over the behaviours, of what the user did in their channel beside them.",
}


def _truth(drawn: Drawn, scores: dict[str, Any]) -> dict[str, Any]:
    world = drawn.world
    kernels = [kernel for target in world.targets for kernel in target.kernels]
    return {
        "world": world.name,
        "summary": world.summary,
        "users": drawn.users,
        "seed": drawn.seed,
        "mechanism": "logit p = intercept + scenario + ad + sum over kernels of weight * log(1 + S), where S sums "
        "strength(action) * 2^(-age / half_life) over the user's behaviours strictly before the request, in the "
        "kernel's domains, that share its field with the ad. `ad` is in ads_truth.parquet; ages are in days."
        + "".join(text for key, text in _MORE.items() if any(asdict(kernel)[key] for kernel in kernels)),
        "targets": {
            target.name: {
                "intercept": drawn.intercept[target.name],
                "scenario": target.scenario,
                "strength": target.strength,
                "kernels": [
                    {key: value for key, value in asdict(kernel).items() if value} for kernel in target.kernels
                ],
            }
            for target in world.targets
        },
        "split": {"start": world.start, **split_dates(world)},
        **({} if drawn.slates is None else _slate_truth(drawn, drawn.slates)),
        "scores": scores,
    }


def _description(world: World, command: str, slates: bool = False, content: bool = True) -> str:
    splits = split_dates(world)
    targets = [target.name for target in world.targets]
    labels = ", ".join(f'{name} = "{name}"' for name in targets)
    truth = ", ".join(f'{name} = "p_{name}"' for name in targets)
    levels = ", ".join(f'"{level}"' for level in AD_LEVELS)
    propensity = '\npropensity = "propensity"' if slates else ""
    name = f"synth-{world.name}" + ("" if content else "-ads-only")
    return f'''# A small advertising world with known truth, made by
# `{command}`
# {world.summary}
# The impressions hold the true probability of every label; truth.json says how it comes about and what it scores.
name = "{name}"
{_content_logs(world) if content else ""}
[[events]]                                  # what users did with ads: few rows
path = "logs/ads.parquet"
domain = "ad"
scenario = {{ column = "scenario" }}
user = "user"
item = "ad"
time = {{ column = "time_ms", unit = "ms" }}
action = {{ column = "action" }}              # {", ".join(world.ad_actions)}
category = [{levels}]
fields = ["brand"]
{_TAXONOMY if content else ""}
[samples]                                   # one row per impression
path = "impressions.parquet"
domain = "ad"
scenario = {{ column = "scenario" }}
user = "user"
item = "ad"
time = {{ column = "time_ms", unit = "ms" }}
category = [{levels}]
fields = ["brand"]
labels = {{ {labels} }}
truth = {{ {truth} }}
value = "order_value"{propensity}
statistics = {{ popularity = ["1d", "7d", "all"] }}

[split]
valid = "{splits["valid"]}"
test = "{splits["test"]}"
'''


_TAXONOMY = """
[taxonomy]
align = "taxonomy.csv"                      # the articles' sections and topics -> the shared categories
"""


def _content_logs(world: World) -> str:
    place = {name: '{ column = "place" }' if world.shared_scenarios else f'"{name}"' for name in ("video", "article")}
    videos, articles = '"brand"', ""
    if world.channels:
        videos, articles = f'{videos}, "channel"', '\nfields = ["channel"]'
    return f"""
[[events]]                                  # videos: three category levels, spelled as the ads spell them
path = "logs/video/*.csv.gz"
domain = "video"
scenario = {place["video"]}
user = "uid"
item = "vid"
time = {{ column = "ts", unit = "s" }}
action = {{ column = "act" }}                 # view, click (implicit), like, share (explicit)
category = ["c1", "c2", "c3"]
fields = [{videos}]

[[events]]                                  # articles: sections and topics of their own
path = "logs/article.csv"
domain = "article"
scenario = {place["article"]}
user = "reader"
item = "article"
time = {{ column = "read_at", format = "%Y-%m-%d %H:%M:%S" }}
action = {{ column = "action" }}
category = ["section", "topic"]{articles}
"""


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a world which may be replaced.

    Raises:
        InputError: `out` is something else, or a world and `overwrite` is not given.
    """
    filled = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if filled and not (out / MARK).is_file():
        raise InputError(f"{out}: exists and is not a world made by `lsm synth`; give another --out")
    if filled and not overwrite:
        raise InputError(f"{out}: a world is there already; add --overwrite to replace it, or give another --out")
