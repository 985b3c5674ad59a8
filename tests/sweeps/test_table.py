"""What a sweep's folder says: the table, noise, ties, and who wins."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from run.report.console import Console
from sweeps.engine.report import render, show_sweep
from sweeps.engine.table import (
    as_csv,
    hours_by_kind,
    read_sweep,
    t_quantile,
    table_cells,
    table_columns,
    verdict,
)
from tests.run.report.test_run_report import HOSTILE, Page


def sweep_folder(
    place: Path, jobs: list[tuple[list[str], float | None]], name: str = "s", **changes: dict[str, Any]
) -> Path:
    """A sweep whose jobs ended with these losses (None: killed); changes: parts of result.json by job number."""
    folder = place / "outputs" / "sweeps" / name
    (folder / "jobs").mkdir(parents=True)
    about = {"name": name, "definition": {}, "command": ["python", "train.py"], "around": {}}
    (folder / "sweep.json").write_text(json.dumps(about))
    for number, (overrides, loss) in enumerate(jobs):
        run = place / "outputs" / f"{name}-{number}"
        run.mkdir(parents=True)
        status = "finished" if loss is not None else "killed"
        record = {"status": status, "why": "" if loss else "killed by SIGKILL", "value": loss, "number": number}
        record |= {"overrides": overrides, "run": str(run), "name": run.name, "tries": 1, "seconds": 60.0}
        record |= {"metric": "loss", "hours": 0.02, "hours_spent": 0.0199}
        (folder / "jobs" / f"{run.name}.json").write_text(json.dumps(record))
        if loss is not None:
            result = {
                "eval": {"loss": loss, "bits_per_byte": loss / 2.1},
                "spent": {"tokens": 1000, "hours": 0.0199},
                "model": {"n_layer": 2, "n_embd": 64},
                "budget": {"hours": 0.02},
                "environment": {"device": "cpu"},
            }
            for part, content in changes.get(f"job{number}", {}).items():
                result[part] = result.get(part, {}) | content
            (run / "result.json").write_text(json.dumps(result))
    return folder


def change_records(folder: Path, pattern: str = "*.json", **changes: Any) -> None:
    """Change keys in the records of a sweep's jobs."""
    for path in (folder / "jobs").glob(pattern):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SEEDS = [
    (["model.dropout=0", "seed=1", "budget.hours=0.02"], 4.00),
    (["model.dropout=0", "seed=2", "budget.hours=0.02"], 4.02),
    (["model.dropout=0.05", "seed=1", "budget.hours=0.02"], 4.01),
    (["model.dropout=0.05", "seed=2", "budget.hours=0.02"], 4.03),
    (["model.dropout=0.2", "seed=1", "budget.hours=0.02"], 4.20),
    (["model.dropout=0.2", "seed=2", "budget.hours=0.02"], 4.22),
]


def test_noise_is_the_deviation_between_seeds_of_the_same_settings(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_folder(tmp_path, SEEDS))
    assert sweep.keys == ["model.dropout", "seed"]
    pairs = [(4.00, 4.02), (4.01, 4.03), (4.20, 4.22)]
    assert sweep.noise == pytest.approx(math.sqrt(statistics.mean(statistics.variance(pair) for pair in pairs)))


def test_groups_within_noise_are_named_after_the_best(tmp_path: Path) -> None:
    first, _, tied, worse = verdict(read_sweep(sweep_folder(tmp_path, SEEDS)))
    assert first == "Best: model.dropout=0 with loss 4.0100 (mean of 2 runs)."
    assert tied == "Within noise of the best: model.dropout=0.05 (4.0200)."
    assert worse == "Worse by more than the noise: model.dropout=0.2 (4.2100)."


def test_without_seeds_the_verdict_says_that_noise_is_unknown(tmp_path: Path) -> None:
    lines = verdict(read_sweep(sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1)])))
    assert lines[0] == "Best: a=1 with loss 4.0000."
    assert lines[1].startswith("The noise is unknown")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"fingerprint": "another"}}, "another text"),
        ({"data": {"tokenizer": "bytes"}}, "another tokenizer"),
        ({"environment": {"device": "NVIDIA A100"}}, "another device"),
        ({"budget": {"hours": 0.005}}, "another budget"),
    ],
)
def test_noise_of_incomparable_runs_is_not_used(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    seeds = {f"job{n}": changes for n in range(3)}
    sweep_folder(tmp_path, [([f"seed={n}"], 4.0 + n) for n in range(3)], name="seeds", **seeds)  # type: ignore[arg-type]
    sweep = read_sweep(sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1)]))
    assert sweep.noise is None
    assert reason in verdict(sweep)[1]


def test_noise_applies_to_jobs_with_the_same_budget_on_a_slow_day(tmp_path: Path) -> None:
    seeds = {f"job{n}": {"budget": {"hours": None, "steps": 100}} for n in range(3)}
    folder = sweep_folder(tmp_path, [([f"seed={n}"], 4.0 + n) for n in range(3)], name="seeds", **seeds)  # type: ignore[arg-type]
    change_records(folder, hours_spent=0.1)
    jobs = {f"job{n}": {"budget": {"hours": None, "steps": 100}} for n in range(2)}
    sweep = read_sweep(sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1)], **jobs))  # type: ignore[arg-type]
    assert sweep.noise == pytest.approx(1.0)


def test_fewer_seeds_need_a_larger_difference(tmp_path: Path) -> None:
    """With three seeds, 2.5 times the noise is not significant; the quantiles are those of printed tables of Student's t.

    The noise is taken from the sweep `seeds` in the same folder."""
    sweep_folder(tmp_path, [([f"seed={n}"], loss) for n, loss in enumerate((4.0, 4.1, 4.2))], name="seeds")
    sweep = read_sweep(sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.5), (["a=3"], 4.7)]))
    assert sweep.noise == pytest.approx(0.1)
    assert [group.label for group in sweep.ties(sweep.groups[0])] == ["a=2"]
    assert [round(t_quantile(freedom), 3) for freedom in (2, 10, 30, 120)] == [4.303, 2.228, 2.042, 1.98]


def test_verdict_warns_if_hours_ended_a_budget_in_flops(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1)], job0={"budget": {"flops": 1e12}})
    path = tmp_path / "outputs" / "s-0" / "result.json"
    assert not any("ended before" in line for line in verdict(read_sweep(folder)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped_by": "hours"}))
    assert any("The hours of #0 ended before their other budget" in line for line in verdict(read_sweep(folder)))


def test_noise_of_perplexity_is_scaled_to_its_level(tmp_path: Path) -> None:
    """The noise of the seeds sweep is converted to the other sweep's metric: at twice the perplexity it is twice as high."""
    seeds = {f"job{n}": {"eval": {"perplexity": value}} for n, value in enumerate((48.0, 50.0, 52.0))}
    sweep_folder(tmp_path, [([f"seed={n}"], 4.0) for n in range(3)], name="seeds", **seeds)  # type: ignore[arg-type]
    folder = sweep_folder(tmp_path, [(["a=1"], 99.0), (["a=2"], 101.0)])
    change_records(folder, metric="perplexity")
    assert read_sweep(folder).noise == pytest.approx(4.0)


def test_large_numbers_are_shown_in_scientific_notation(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_folder(tmp_path, [(["budget.flops=77500000000.0"], 4.0), (["budget.flops=1e+18"], 3.0)]))
    assert [row.label for row in sweep.rows] == ["budget.flops=7.75e+10", "budget.flops=1e+18"]
    assert sweep.command_of(sweep.rows[0]).endswith("budget.flops=77500000000.0")


def test_failed_jobs_are_in_the_table_but_not_ranked(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], None)]))
    assert [row.status for row in sweep.rows] == ["finished", "killed"]
    assert len(sweep.groups) == 1
    rows = list(csv.DictReader(io.StringIO(as_csv(sweep))))
    assert [row["status"] for row in rows] == ["finished", "killed"]
    assert float(rows[0]["eval.loss"]) == 4.0
    assert rows[1]["eval.loss"] == ""
    assert "why" in table_columns(sweep)


def test_equal_hours_on_different_devices_are_not_ranked(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1)], job1={"environment": {"device": "NVIDIA A100"}})
    assert "not ranked" in verdict(read_sweep(folder))[0]
    assert "Best loss" not in render(read_sweep(folder))
    assert "Best loss" in render(read_sweep(folder), force=True)
    assert verdict(read_sweep(folder), force=True)[0].startswith("Best: a=1")


def test_verdict_warns_about_scores_on_different_text(tmp_path: Path) -> None:
    jobs = [(["a=1"], 4.0), (["a=2"], 4.1)]
    folder = sweep_folder(tmp_path, jobs, job0={"eval": {"tokens": 4096}}, job1={"eval": {"tokens": 8192}})  # type: ignore[arg-type]
    assert any("4,096 to 8,192 validation tokens" in line for line in verdict(read_sweep(folder)))


# The figures of `-m data.tokenizer=bpe-4096,bpe-512,bytes` on one text: the lowest loss has the most bits per byte.
TOKENIZERS = (("bpe-4096", 7.42, 3.16), ("bpe-512", 4.70, 3.41), ("bytes", 2.93, 4.23))


def tokenizer_sweep(place: Path, metric: str = "loss", **changes: Any) -> Path:
    """A sweep over tokenizers, all scored on the same 60,000 bytes."""
    results = {}
    for number, (name, loss, bits) in enumerate(TOKENIZERS):
        scores = {"loss": loss, "bits_per_byte": bits, "perplexity": math.exp(loss), "accuracy": 0.1 * number}
        scores |= {"tokens": 20_000 * (number + 1), "bytes": 60_000}
        data = {"tokenizer": name, "fingerprint": name, "text_fingerprint": "t", "validation_tokens": scores["tokens"]}
        results[f"job{number}"] = {"eval": scores, "data": data}
    for part, content in changes.items():
        for number, each in enumerate(content):
            results[f"job{number}"][part] |= each
    jobs = [([f"data.tokenizer={name}"], loss) for name, loss, _ in TOKENIZERS]
    folder = sweep_folder(place, jobs, **results)  # type: ignore[arg-type]
    for number in range(3):
        change_records(folder, f"s-{number}.json", metric=metric, value=results[f"job{number}"]["eval"][metric])
    return folder


@pytest.mark.parametrize("metric", ["loss", "perplexity", "accuracy"])
def test_different_tokenizers_are_ranked_by_bits_per_byte(tmp_path: Path, metric: str) -> None:
    sweep = read_sweep(tokenizer_sweep(tmp_path, metric))
    lines = verdict(sweep)
    assert lines[0] == "Best: data.tokenizer=bpe-4096 with bits per byte 3.1600."
    assert lines[1].startswith("The jobs have different tokenizers, so they are ranked by bits per byte")
    assert not any("different amounts" in line or "different text" in line for line in lines)
    page = Page(render(sweep)).text
    assert "Best bits per byte" in page
    assert "python train.py data.tokenizer=bpe-4096" in page
    assert metric in table_columns(sweep)
    value = sweep.rows[2].of("eval", metric)
    assert f"{value:.4f}" in table_cells(sweep, sweep.rows[2])


def test_bits_per_byte_as_the_metric_needs_no_explanation(tmp_path: Path) -> None:
    lines = verdict(read_sweep(tokenizer_sweep(tmp_path, "bits_per_byte")))
    assert lines[0] == "Best: data.tokenizer=bpe-4096 with bits per byte 3.1600."
    assert not any("different tokenizers" in line for line in lines)


def test_results_without_fingerprints_are_compared_by_their_options(tmp_path: Path) -> None:
    """As earlier versions wrote them: the corpus has one fingerprint for each tokenizer, although the text is the same."""
    sweep = read_sweep(tokenizer_sweep(tmp_path, data=[{"text_fingerprint": None}] * 3))
    assert verdict(sweep)[0].startswith("Best: data.tokenizer=bpe-4096")


def test_two_trained_tokenizers_of_one_name_are_different(tmp_path: Path) -> None:
    data = [{"tokenizer": "bpe-512", "tokenizer_fingerprint": str(number)} for number in range(3)]
    assert read_sweep(tokenizer_sweep(tmp_path, data=data)).metric == "bits_per_byte"


def test_ties_between_tokenizers_are_in_bits_per_byte(tmp_path: Path) -> None:
    jobs, results = [], {}
    for number, (name, loss, bits) in enumerate(
        [("a", 3.0, 2.00), ("a", 3.5, 2.02), ("b", 2.0, 2.01), ("b", 2.1, 2.03)]
    ):
        jobs.append(([f"data.tokenizer={name}", f"seed={number}"], loss))
        results[f"job{number}"] = {"eval": {"bits_per_byte": bits}, "data": {"tokenizer": name}}
    sweep = read_sweep(sweep_folder(tmp_path, jobs, **results))  # type: ignore[arg-type]
    assert sweep.noise == pytest.approx(statistics.stdev([2.00, 2.02]))
    assert "Within noise of the best: data.tokenizer=b (2.0200)." in verdict(sweep)


def test_tokenizers_that_saw_different_bytes_are_named_with_a_value_that_helps(tmp_path: Path) -> None:
    cut = [{"bytes": 60_000}, {"bytes": 51_000}, {"bytes": 20_000}]
    sizes = [{"validation_tokens": 20_000}, {"validation_tokens": 40_000}, {"validation_tokens": 61_000}]
    lines = verdict(read_sweep(tokenizer_sweep(tmp_path, eval=cut, data=sizes)))
    (warning,) = (line for line in lines if "different amounts" in line)
    assert "20,000 to 60,000 validation bytes" in warning
    assert "eval.tokens=61000" in warning


def corpora_sweep(place: Path, known: bool = True) -> Path:
    """Two corpora with two settings each; the second corpus has the easier text."""
    jobs, results = [], {}
    for number, (path, dropout, loss) in enumerate(
        [("a.txt", 0, 3.2), ("a.txt", 0.1, 3.1), ("b.txt", 0, 2.0), ("b.txt", 0.1, 2.5)]
    ):
        jobs.append(([f"data.path={path}", f"model.dropout={dropout}"], loss))
        data = {"tokenizer": "bytes", "fingerprint": path} | ({"text_fingerprint": path} if known else {})
        results[f"job{number}"] = {"data": data}
    return sweep_folder(place, jobs, **results)  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [True, False])
def test_there_is_no_winner_across_corpora(tmp_path: Path, capsys: pytest.CaptureFixture[str], known: bool) -> None:
    sweep = read_sweep(corpora_sweep(tmp_path, known))
    first, *rest = verdict(sweep)
    assert first.startswith(
        "The jobs were scored on different text (data.path=a.txt; data.path=b.txt), so they are not"
    )
    assert first.endswith(f"python -m sweeps.engine.report {sweep.folder} --force ranks them anyway.")
    assert rest == [
        "Best on data.path=a.txt: model.dropout=0.1 with loss 3.1000.",
        "Best on data.path=b.txt: model.dropout=0 with loss 2.0000.",
    ]
    show_sweep(sweep, Console())
    shown = capsys.readouterr().out
    assert "best    " not in shown
    assert "Within noise" not in shown
    assert "Best loss" not in (tmp_path / "outputs/sweeps/s/report.html").read_text()
    assert verdict(sweep, force=True)[0].startswith("Best: data.path=b.txt, model.dropout=0")


def test_corpora_with_the_same_validation_text_are_ranked(tmp_path: Path) -> None:
    data = [{"fingerprint": path, "text_fingerprint": "same", "tokenizer": "bytes"} for path in ("a", "b")]
    results = {f"job{number}": {"data": content} for number, content in enumerate(data)}
    jobs = [(["data.path=a"], 4.0), (["data.path=b"], 3.9)]
    assert verdict(read_sweep(sweep_folder(tmp_path, jobs, **results)))[0] == "Best: data.path=b with loss 3.9000."  # type: ignore[arg-type]


def test_verdict_warns_about_unequal_speeds(tmp_path: Path) -> None:
    jobs = [(["a=1"], 4.0), (["a=2"], 4.1), (["a=3"], 4.2)]
    steps, large = {"spent": {"steps": 10}}, {"n_layer": 4}  # another shape may have another speed
    speeds = {
        f"job{n}": steps | {"throughput": {"tokens_per_second": speed}} for n, speed in enumerate((1000, 1250, 300))
    }
    speeds["job2"] |= {"model": large}
    unequal = [verdict(read_sweep(sweep_folder(tmp_path, jobs, **speeds)))]  # type: ignore[arg-type]
    speeds["job1"] |= {"throughput": {"tokens_per_second": 1150}}
    unequal.append(verdict(read_sweep(sweep_folder(tmp_path, jobs, name="equal", **speeds))))  # type: ignore[arg-type]
    assert [any("1,000 to 1,250 tokens/s" in line for line in lines) for lines in unequal] == [True, False]
    assert not any("tokens/s" in line for line in unequal[1])


def test_accuracy_is_better_when_it_is_higher(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [(["a=1"], 0.3), (["a=2"], 0.4)])
    change_records(folder, metric="accuracy")
    assert verdict(read_sweep(folder))[0].startswith("Best: a=2")


def task_sweep(place: Path, scores: list[float], **changes: dict[str, Any]) -> Path:
    """A sweep over corpora that is ranked by the task quiz."""
    results: dict[str, Any] = {}
    for number, score in enumerate(scores):
        task = {"score": score, "items": 100, "fingerprint": "a"} | changes.get(f"job{number}", {})
        data = {"fingerprint": str(number), "text_fingerprint": str(number), "tokenizer": f"bpe-{number}"}
        results[f"job{number}"] = {"tasks": {"quiz": task}, "data": data}
    jobs: list[tuple[list[str], float | None]] = [([f"data.path=text{n}"], score) for n, score in enumerate(scores)]
    folder = sweep_folder(place, jobs, **results)
    change_records(folder, metric="quiz")
    return folder


def test_corpora_and_tokenizers_are_ranked_by_a_task(tmp_path: Path) -> None:
    """Its items are the same for all models."""
    folder = task_sweep(tmp_path, [0.6, 0.7])
    sweep = read_sweep(folder)
    assert verdict(sweep)[0] == "Best: data.path=text1 with quiz 0.7000."
    assert next(csv.DictReader(io.StringIO(as_csv(sweep))))["tasks.quiz.score"] == "0.6"
    assert "quiz against data.path" in render(sweep)


def test_the_verdict_on_a_task_says_which_items_differ(tmp_path: Path) -> None:
    fewer = verdict(read_sweep(task_sweep(tmp_path / "a", [0.6, 0.7], job1={"items": 50})))
    assert "different numbers of items of quiz, 50 to 100" in fewer[1]
    others = verdict(read_sweep(task_sweep(tmp_path / "b", [0.6, 0.7], job1={"fingerprint": "b"})))
    assert others[0].startswith("The jobs were scored on different items")


def test_hours_left_by_pruned_jobs_are_listed(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.5)])
    change_records(folder, "s-1.json", status="pruned", hours_spent=0.005)
    assert dict(hours_by_kind(read_sweep(folder))) == pytest.approx(
        {"finished": 0.0199, "pruned": 0.005, "left by pruned jobs": 0.015}
    )


def test_the_command_of_a_job_is_quoted_for_the_shell(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_folder(tmp_path, [(['wandb.tags=["a b"]', "seed=1"], 4.0)]))
    assert sweep.command_of(sweep.rows[0]) == "python train.py 'wandb.tags=[\"a b\"]' seed=1"


def test_all_rows_show_the_same_metric(tmp_path: Path) -> None:
    """Also while some records are from an earlier start of the sweep with another metric."""
    jobs = [(["a=1"], 4.1), (["a=2"], 4.0)]
    folder = sweep_folder(tmp_path, jobs, job1={"eval": {"perplexity": 54.6}})
    change_records(folder, "s-0.json", metric="perplexity", value=60.3)
    sweep = read_sweep(folder)
    assert (sweep.metric, [row.value for row in sweep.rows]) == ("perplexity", [60.3, 54.6])
    assert verdict(sweep)[0].startswith("Best: a=2 with perplexity 54.6")


@pytest.mark.parametrize("status", ["finished", "killed"])
def test_a_longer_run_is_not_counted_as_a_job(tmp_path: Path, status: str) -> None:
    folder = sweep_folder(tmp_path, [(["a=1"], 4.0), (["a=2"], 4.1), (["a=1"], 3.9)])
    change_records(folder, "s-2.json", longer=True, status=status)
    page = render(read_sweep(folder))
    assert "2 of 2" in page
    assert '<header class="finished">' in page


def test_the_page_is_self_contained_and_escapes_hostile_text(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [([f"a={HOSTILE}"], 4.0), (["a=2"], None)])
    change_records(folder, "s-1.json", why=HOSTILE)
    page = Page(render(read_sweep(folder)))
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    links = [address for address in page.addresses if not address.startswith("#")]
    assert links == ["../../s-0/report.html", "../../s-1/report.html", "sweep.csv"]
    assert page.text.count("evil.example") >= 4  # verdict, command, table of jobs, table of failures


def test_the_number_of_curves_shown_is_stated(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [([f"a={n}"], 4.0 + n) for n in range(12)])
    for run in (tmp_path / "outputs").glob("s-*"):
        points = [{"step": step, "hours": step, "flops": step, "tokens": step, "val_loss": 9 - step} for step in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    assert "Shows the first 10 of 12 jobs that have a result." in Page(render(read_sweep(folder))).text
