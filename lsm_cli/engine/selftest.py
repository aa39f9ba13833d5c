"""The self-test of `lsm doctor`: the whole way from a store to scores, on this machine, in some seconds."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.store import Store
from lsm_cli.data.tiny import write_store
from lsm_cli.engine.evaluate import score
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.machine import OPTIONAL, installed, memory, requirements, too_old
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.scorer import Scorer
from lsm_cli.options import Recipe
from lsm_cli.recipe import parse
from lsm_cli.search.hard import ANY, HardOptions, HardSearch

LEAST = 1 << 30  # bytes of memory and of disk below which nothing useful is trained
REPORT = "paste this into an issue"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        ok: None = not failed, but worth knowing.
        detail: what was found.
        remedy: what to do where it is not ok.
        seconds: it took.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def checks() -> list[Check]:
    """Look at the machine, then use it; a check that fails never keeps the others from being made."""
    found = [_libraries(), _missing(), _memory(), _disk(), _gpu()]
    try:
        folder = Path(tempfile.mkdtemp(prefix="lsm-doctor-"))
    except OSError as error:
        return [*found, Check("self-test", False, str(error), "set TMPDIR to a folder that can be written")]
    try:
        world = _World(folder)
        found += [
            _tried("store", lambda: _store(world), "the disk of TMPDIR or numpy is broken"),
            _tried("kernels", _kernels, f"torch computes something else than plain gathers do here; {REPORT}"),
            _tried("search", lambda: _search(world), f"index and scan disagree; {REPORT}"),
            _tried("training", lambda: _training(world), REPORT),
            _tried("save and load", lambda: _reload(world), f"weights changed on the disk of TMPDIR; {REPORT}"),
            _tried("bf16", lambda: _bf16(world), f"train with train.precision=fp32 and {REPORT}"),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


class _World:
    """A tiny store, and a model trained on it; made when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def store(self) -> Store:
        return Store.open(write_store(self.folder / "store", index=True))

    @cached_property
    def trained(self) -> tuple[Setup, Scorer, float]:
        return self.train("fp32" if not torch.cuda.is_available() else "auto")

    def train(self, precision: str) -> tuple[Setup, Scorer, float]:
        """(setup, best model, seconds in training steps)."""
        setup = Setup.of(_recipe(precision), self.store)
        run = RunFolder.start(self.folder / f"run-{precision}", setup.recipe, self.store, resume=False)
        try:
            trainer = Trainer(setup, run)
            trainer.fit()
            return setup, trainer.best(), trainer.at.seconds
        finally:
            run.close()


def _recipe(precision: str) -> Recipe:
    return parse(
        {
            "name": "self-test",
            "model": {"sequence": "stacked_tin", "max_len": 20, "hidden": [32], "bins": 4},
            "train": {"epochs": 3, "batch_size": 64, "precision": precision, "ema": 0.9},
        },
        "self-test",
    )


def _tried(name: str, check: Callable[[], str], remedy: str) -> Check:
    started = time.perf_counter()
    try:
        ok, detail = True, check()
    except Exception as error:  # what goes wrong on a broken machine is not known beforehand
        lines = str(error).strip().splitlines()
        ok, detail = False, f"{type(error).__name__}: {lines[0] if lines else ''}"
    return Check(name, ok, detail, "" if ok else remedy, round(time.perf_counter() - started, 2))


# the machine


def _libraries() -> Check:
    have = {name: installed(name) for name in requirements()}
    lack = [name for name, found in have.items() if found is None and name not in OPTIONAL]
    old = [name for name, least in requirements().items() if (found := have[name]) and too_old(found, least)]
    if not old and not lack:
        return Check("libraries", True, "all that training needs, recent enough")
    said = [f"{name} is missing" for name in lack]
    said += [f"{name} {have[name]} is older than {requirements()[name]}" for name in old]
    return Check("libraries", False, "; ".join(said), f"pip install --upgrade {' '.join([*lack, *old])}")


def _missing() -> Check:
    lack = [name for name in OPTIONAL if installed(name) is None]
    if not lack:
        return Check("optional libraries", True, "all there")
    telling = "; ".join(f"{name} ({OPTIONAL[name]})" for name in lack)
    return Check("optional libraries", None, f"not installed: {telling}", "install them if you need what they do")


def _memory() -> Check:
    _, available = memory()
    if available is None:
        return Check("memory", None, "how much is free is not known on this system")
    detail = f"{available / 2**30:.1f} GiB available"
    return Check("memory", available >= LEAST, detail, "" if available >= LEAST else "end other programs")


def _disk() -> Check:
    try:
        free = shutil.disk_usage(".").free
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        return Check("disk", False, f"this folder cannot be written ({error.strerror})", "change to one that can")
    detail = f"{free / 2**30:.1f} GiB free here"
    return Check("disk", free >= LEAST, detail, "" if free >= LEAST else "free some space, or change to another disk")


def _gpu() -> Check:
    if torch.cuda.is_available():
        return _tried("GPU", _use_gpu, "driver and torch do not fit together: install torch for the driver's CUDA")
    if Path("/proc/driver/nvidia/version").exists():
        built = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} is a CPU build")
        )
        remedy = "install a CUDA build of torch that fits the driver; train.device=cpu works meanwhile"
        return Check("GPU", False, f"there is an NVIDIA driver, but torch sees no GPU: {built}", remedy)
    return Check("GPU", None, "none: everything runs on the CPU")


def _use_gpu() -> str:
    made = torch.ones(256, 256, device="cuda")
    if float((made @ made).sum()) != 256.0**3:
        raise ArithmeticError("a product of matrices is wrong")
    return f"{torch.cuda.get_device_name()} multiplies"


# lsm on it


def _store(world: _World) -> str:
    store = world.store
    user, end = (np.asarray(store.samples("test").column(name)) for name in ("user", "end"))
    if not ((store.offsets[user] <= end) & (end <= store.offsets[user + 1])).all():
        raise ValueError("what was read is not what was written")
    return f"{store.events:,} behaviours written and read"


def _kernels() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make, worst, used = torch.Generator().manual_seed(0), 0.0, []
    lengths = torch.randint(0, 60, (64,), generator=make)
    segments = Segments(torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device))
    for rows in (8, 20_000):
        ids = torch.randint(rows, (segments.total,), generator=make).to(device)
        table, query = (torch.randn(n, 16, generator=make).to(device) for n in (rows, segments.size))
        fast, plain = Occurrences(ids, rows, segments), Occurrences(ids, rows, segments, "reference")
        for one, other in zip(_attention(table, query, fast), _attention(table, query, plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
            worst = max(worst, float((one - other).abs().max()))
        used.append(fast.method)
    return f"{' and '.join(dict.fromkeys(used))} agree with the reference, forward and backward, within {worst:.0e}"


def _attention(table: Tensor, query: Tensor, at: Occurrences) -> list[Tensor]:
    table, query = table.clone().requires_grad_(), query.clone().requires_grad_()
    weight = ragged.softmax(ragged.dot(table, query, at) / 4, at.segments)
    out = ragged.pool(table, weight, at) * query
    out.square().sum().backward()
    assert table.grad is not None and query.grad is not None
    return [out.detach(), table.grad, query.grad]


def _search(world: _World) -> str:
    setup = Setup.of(_recipe("fp32"), world.store)
    queries = setup.assembler("test").queries(np.arange(len(world.store.samples("test"))))
    options = HardOptions(["item", "category2", "category1", ANY], 5, {}, scan_below=1 << 40)
    scanned = HardSearch(world.store, options)(queries)
    indexed = HardSearch(world.store, replace(options, scan_below=0))(queries)
    for name in ("offsets", "pointer", "level"):
        if not np.array_equal(getattr(scanned, name), getattr(indexed, name)):
            raise ValueError(f"the index finds other behaviours than the scan ({name})")
    return f"index and scan find the same {len(scanned.pointer):,} behaviours for {len(queries):,} candidates"


def _training(world: _World) -> str:
    setup, _, seconds = world.trained
    rate = setup.recipe.train.epochs * len(world.store.samples("train")) / max(seconds, 1e-9)
    return f"{setup.recipe.train.epochs} passes of stacked_tin on {setup.compute.describe()}: {rate:,.0f} samples/s"


def _reload(world: _World) -> str:
    setup, model, _ = world.trained
    feed, index = Feed(setup, "test"), np.arange(len(world.store.samples("test")))
    before = score(model, feed, setup.compute, index)
    run = RunFolder.open(world.folder / f"run-{setup.recipe.train.precision}")
    again = setup.model()
    again.load_state_dict(run.load_weights(), strict=False)
    after = score(again, feed, setup.compute, index)
    if not np.allclose(before, after, rtol=0, atol=1e-6):
        raise ValueError(f"scores differ by up to {np.abs(before - after).max():.3g} after loading the weights")
    return f"the same {len(before):,} scores from the saved weights"


def _bf16(world: _World) -> str:
    setup, model, _ = world.train("bf16")
    index = np.arange(len(world.store.samples("test")))
    found = score(model, Feed(setup, "test"), setup.compute, index)
    if not np.isfinite(found).all():
        raise ArithmeticError("scores are not finite")
    return f"trained and scored on {setup.compute.describe()}"
