"""The trail of experiments: listed, chosen, shown and compared, in whatever state the folders are."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from lsm_cli.engine import choosing, trail
from lsm_cli.errors import InputError
from lsm_cli.main import app

SMALL = ["train.batch_size=64", "train.threads=1", "model.max_len=10", "model.hidden=[16]", "model.bins=4"]


def _lsm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: str | Path) -> dict:
    result = _lsm(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs and their ledger."""
    root = tmp_path_factory.mktemp("trail")
    for name, more in (("tin", []), ("dnn", ["train.epochs=1"])):
        result = _lsm("train", "-r", name, "--data", small_store, "--out", root / name, *SMALL, *more)
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def _states(root: Path) -> dict[str, str]:
    return {run["name"]: run["state"] for run in _json("runs", root)["runs"]}


def test_finished_runs_say_what_they_were_and_reached(runs: Path) -> None:
    found = {run["name"]: run for run in _json("runs", "ls", runs)["runs"]}
    assert found.keys() == {"tin", "dnn"}
    result = json.loads((runs / "tin" / "result.json").read_text())
    assert found["tin"]["metrics"]["click"]["auc"] == result["test"]["click"]["auc"]
    assert found["tin"]["recipe"] == "tin" and found["tin"]["store"] == "small" and found["tin"]["seed"] == 0
    shown = _lsm("runs", runs).stdout
    for words in ("click AUC", "order GAUC", "samples/s", "memory", "parameters", "finished", "next: lsm runs diff"):
        assert words in shown


def test_every_state_of_a_run_is_told(runs: Path) -> None:
    shutil.copytree(runs / "tin", runs / "deep" / "er" / "killed")
    (runs / "deep" / "er" / "killed" / "result.json").unlink()
    shutil.copytree(runs / "deep" / "er" / "killed", runs / "busy")
    shutil.rmtree(runs / "dnn")
    with open(runs / "busy" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _states(runs) == {
            "tin": "finished", "deep/er/killed": "interrupted", "busy": "running", "dnn": "removed",
        }  # fmt: skip
    assert _states(runs)["busy"] == "interrupted"
    removed = next(run for run in _json("runs", runs)["runs"] if run["name"] == "dnn")
    assert removed["metrics"]["click"]["auc"] is not None and removed["recipe"] == "dnn"
    assert "interrupted at 3.00 of 3" in _lsm("runs", runs).stdout


def test_a_later_run_of_the_same_name_does_not_hide_the_earlier(runs: Path, small_store: Path) -> None:
    shutil.rmtree(runs / "dnn")
    ledger = runs / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    for line in lines:
        line["started"] = "2020-01-01T00:00:00+00:00"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _lsm("train", "-r", "dnn", "--data", small_store, "--out", runs / "dnn", *SMALL).exit_code == 0
    assert _lsm("train", "--from", runs / "dnn", "--out", runs / "dnn", "--resume").exit_code == 0
    states = [(run["name"], run["state"]) for run in _json("runs", runs)["runs"]]
    assert sorted(states) == [("dnn", "finished"), ("dnn", "removed"), ("tin", "finished"), ("tin", "removed")]


def test_trials_of_studies_are_left_out_unless_asked_for(runs: Path) -> None:
    study = runs / "study"
    for name in ("0000", "0001"):
        shutil.copytree(runs / "tin", study / "trials" / name)
    (study / "trials" / "0001" / "result.json").unlink()
    (study / "trials" / "0001" / "state.pt").unlink(missing_ok=True)
    assert len(_json("runs", runs)["runs"]) == 4  # folders called trials, but of no study
    (study / "study.json").write_text("{}")
    (study / "trials" / "0000" / "result.json").write_text(json.dumps({"valid": {"click": {"auc": 0.75}}}))
    assert _states(runs).keys() == {"tin", "dnn"}
    assert "2 trials of studies left out; --trials shows them" in _lsm("runs", runs).stdout
    found = {run["name"]: run for run in _json("runs", runs, "--trials")["runs"]}
    assert found.keys() == {"tin", "dnn", "study/trials/0000", "study/trials/0001"}
    assert found["study/trials/0000"]["metrics"]["click"]["auc"] == 0.75
    stopped, last = found["study/trials/0001"], (runs / "tin" / "metrics.jsonl").read_text().splitlines()[-1]
    assert stopped["state"] == "stopped" and stopped["split"] == "valid"
    assert stopped["metrics"]["order"]["gauc"] == json.loads(last)["valid"]["order"]["gauc"]
    assert found["tin"]["split"] == "test"
    shown = _lsm("runs", study).stdout  # nothing but trials: no need to ask
    assert "0.7500*" in shown and "stopped at 3.00 of 3" in shown and "* on the validation samples" in shown
    (study / "trials" / "0001" / "model.safetensors").unlink()
    weightless = _lsm("eval", study / "trials" / "0001")
    assert weightless.exit_code == 2 and "keeps the weights of its best trials" in weightless.stderr


FILES = ("ledger.jsonl", *(f"tin/{name}" for name in ("result.json", "recipe.toml", "data.json", "environment.json")))


@pytest.mark.parametrize("file", [*FILES, "tin/metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b'{"run": "tin", "te', b"\xff\xfe\x00oops\n[1]\n"])
def test_nothing_that_is_damaged_breaks_the_table(runs: Path, file: str, content: bytes) -> None:
    (runs / file).write_bytes(content)
    found = _json("runs", runs)
    assert {"tin", "dnn"} <= {run["name"] for run in found["runs"]}
    assert _lsm("runs", runs).exit_code == 0
    for command in (["show", runs / "tin"], ["diff", runs / "dnn", runs / "tin"]):
        result = _lsm("runs", *command)
        assert result.exit_code == 0 and "Traceback" not in result.output, result.output
    name = Path(file).name
    unsaid = name == "metrics.jsonl" or (not content and name in ("ledger.jsonl", "recipe.toml"))  # empty is valid
    assert any(name in problem for problem in found["problems"]) != unsaid, found["problems"]
    assert (name in _lsm("runs", runs).stderr) != unsaid


def test_a_run_killed_before_its_result_has_one_line_in_the_ledger(small_store: Path, tmp_path: Path) -> None:
    command = ["train", "-r", "dnn", "--data", small_store, "--out", tmp_path / "run", *SMALL]
    assert _lsm(*command).exit_code == 0
    line = (tmp_path / "ledger.jsonl").read_bytes()
    (tmp_path / "run" / "result.json").unlink()
    assert _lsm(*command, "--resume").exit_code == 0
    assert (tmp_path / "run" / "result.json").is_file() and (tmp_path / "ledger.jsonl").read_bytes() == line


def test_the_ledger_is_mended_by_the_next_line(runs: Path, small_store: Path) -> None:
    """A line that a full disk cut short costs that line, not the next one."""
    ledger = runs / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-30])
    assert _lsm("train", "-r", "dnn", "--data", small_store, "--out", runs / "third", *SMALL).exit_code == 0
    assert json.loads(ledger.read_text().splitlines()[-1])["run"] == str(runs / "third")
    assert len(_json("runs", runs)["problems"]) == 1


def test_filters_sorting_and_limit(runs: Path) -> None:
    def names(*options: str) -> list[str]:
        return [run["name"] for run in _json("runs", runs, *options)["runs"]]

    assert names("--filter", "recipe=tin") == ["tin"] and names("-f", "recipe!=tin") == ["dnn"]
    assert names("-f", "name=d*") == ["dnn"] and names("-f", "train.epochs>=2") == ["tin"]
    assert names("-f", "model.hidden=[16]", "-f", "state=finished", "-f", "seed=0", "--sort", "name") == ["dnn", "tin"]
    best = names("--sort", "click.auc")
    assert names("--sort", "click.auc", "--reverse") == best[::-1]
    bound = _json("runs", runs)["runs"][0]["metrics"]["click"]["auc"]
    assert len(names("-f", f"click.auc>={bound}")) + len(names("-f", f"click.auc<{bound}")) == 2
    assert (
        len(names("--limit", "1")) == 1 and "1 more; --limit 0 shows all" in _lsm("runs", runs, "--limit", "1").stdout
    )
    assert names("-f", "recipe=nothing") == []


MISTAKES = {
    "unknown key": (["--sort", "click.acu"], "did you mean 'click.auc'?"),
    "unknown filter key": (["--filter", "recepi=tin"], "did you mean 'recipe'?"),
    "no comparison": (["--filter", "recipe"], "key=value"),
    "no number": (["--filter", "click.auc>high"], "is a number"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence(runs: Path, case: str) -> None:
    options, words = MISTAKES[case]
    result = _lsm("runs", runs, *options)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("error:") == 1


def test_no_runs_and_no_folder(tmp_path: Path) -> None:
    assert "no runs in" in _lsm("runs", tmp_path).stdout
    assert _json("runs", tmp_path)["runs"] == []
    assert _lsm("runs", tmp_path / "nowhere").exit_code == 2
    result = _lsm("runs", "show", tmp_path)
    assert result.exit_code == 2 and "not a run" in result.stderr


def test_show_and_diff(runs: Path) -> None:
    shown = _json("runs", "show", runs / "tin")
    assert shown["options"]["model"]["max_len"] == 10 and len(shown["history"]) == 6 and shown["data"]["files"]
    assert shown["environment"]["code"]["sha256"]
    text = _lsm("runs", "show", runs / "tin").stdout
    assert "Learning curve" in text and "lsm train --from" in text and "torch" in text
    found = _json("runs", "diff", runs / "tin", runs / "dnn", runs / "tin")
    assert found["recipe"]["model.sequence"] == ["tin", "none", "tin"] and found["recipe"]["train.epochs"] == [3, 1, 3]
    assert "train.lr" not in found["recipe"] and found["data"]["same"] and found["comparable"]
    auc = found["metrics"]["click"]["auc"]
    assert auc[0] == auc[2] and f"({auc[1] - auc[0]:+.4f})" in _lsm("runs", "diff", runs / "tin", runs / "dnn").stdout
    data = json.loads((runs / "dnn" / "data.json").read_text())
    data["files"]["samples/test/item.npy"] = "0"
    (runs / "dnn" / "data.json").write_text(json.dumps(data))
    result = _lsm("runs", "diff", runs / "tin", runs / "dnn")
    assert "samples/test/item.npy" in result.stdout and "cannot be compared" in result.stderr
    assert _lsm("runs", "diff", runs / "tin").exit_code == 2


def test_listing_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from lsm_cli.main import main; sys.argv[0] = 'lsm'\n"
        "try: main()\nfinally: assert not {'torch', 'polars', 'optuna'} & sys.modules.keys()"
    )
    for command in (["runs", runs], ["runs", "show", runs / "tin"], ["runs", "diff", runs / "tin", runs / "dnn"]):
        subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True, capture_output=True)


def test_looking_never_disturbs_who_writes(small_store: Path, tmp_path: Path) -> None:
    """A run is seen as running while it is written, is interrupted after kill -9, and listing never keeps it from
    starting."""
    out = tmp_path / "runs" / "one"
    command = [sys.executable, "-m", "lsm_cli.main", "train", "-r", "tin", "--data", str(small_store)]
    command += ["--out", str(out), *SMALL, "train.epochs=500", "train.checkpoint_seconds=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        seen = set()
        while process.poll() is None and not (out / "state.pt").exists():
            if out.parent.is_dir():
                seen |= {run["state"] for run in trail.find_runs(out.parent)[0]}
            time.sleep(0.001)
        assert process.poll() is None, "listing broke the start"
        assert trail.read_run(out)["state"] == "running" and seen <= {"running"}
    finally:
        process.kill()
        process.wait()
    found = trail.read_run(out)
    assert found["state"] == "interrupted" and not found["metrics"]


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
VALUES = st.one_of(st.none(), st.floats(0, 1), st.integers(-5, 5))


def _record(value: object) -> trail.Record:
    return {**dict.fromkeys(trail.FIELDS), "metrics": {}, "options": {"model": {"x": value}}}


@UNHURRIED
@given(st.lists(VALUES, max_size=20), st.floats(-5, 5))
def test_a_comparison_and_its_opposite_share_out_the_runs(values: list, bound: float) -> None:
    records = [_record(value) for value in values]
    parts = [choosing.select(records, [f"model.x{sign}{bound!r}"]) for sign in (">", "<=")]
    assert sum(map(len, parts)) == sum(value is not None for value in values)
    assert all(choosing.value_of(record, "model.x") > bound for record in parts[0])


@UNHURRIED
@given(st.lists(VALUES, max_size=20), st.booleans())
def test_sorting_keeps_every_run_and_puts_the_missing_last(values: list, reverse: bool) -> None:
    records = [_record(value) for value in values]
    found = [choosing.value_of(record, "model.x") for record in choosing.ordered(records, "model.x", reverse)]
    have = sorted((value for value in values if value is not None), reverse=reverse)
    assert found == have + [None] * (len(values) - len(have))


@UNHURRIED
@given(st.text(max_size=20))
def test_any_filter_is_read_or_refused(text: str) -> None:
    try:
        choosing.select([_record(1)], [text])
    except InputError as error:
        assert "--filter" in str(error)
