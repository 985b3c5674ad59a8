"""Tests of minimal pairs: published averages, sums by hand, ties, and files with mistakes."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from data.tokenizers.byte_bpe import ByteBpe
from data.tokenizers.hf_tokenizer import HfTokenizer
from data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items, figures_of, marks_of
from evals.scoring import Score, Scorer
from evals.tasks.blimp import FIELD_OF, FIELDS, PARADIGMS, PHENOMENON_OF
from evals.tasks.minimal_pairs import MinimalPairs, load_minimal_pairs
from evals.tasks.task import TaskOptions
from model.config import PRESETS, Shape
from model.gpt import GPT
from tests.conftest import SHARED

# Accuracy of GPT-2 in percent, and its averages by phenomenon and over all paradigms, as the authors of BLiMP published them
# (raw_results/summary/models_summary.jsonl of github.com/alexwarstadt/blimp).
# fmt: off
GPT2 = {
    "anaphor_agreement": (99.3, {"anaphor_gender_agreement": 99.4, "anaphor_number_agreement": 99.2}),
    "argument_structure": (81.77777778, {
        "animate_subject_passive": 76.6, "animate_subject_trans": 84.9, "causative": 78.2, "drop_argument": 80.7,
        "inchoative": 65.9, "intransitive": 84.2, "passive_1": 89.3, "passive_2": 90.2, "transitive": 86.0}),
    "binding": (80.94285714, {
        "principle_A_c_command": 73.7, "principle_A_case_1": 100.0, "principle_A_case_2": 94.8,
        "principle_A_domain_1": 98.4, "principle_A_domain_2": 77.5, "principle_A_domain_3": 75.4,
        "principle_A_reconstruction": 46.8}),
    "control_raising": (81.92, {
        "existential_there_object_raising": 78.4, "existential_there_subject_raising": 91.1,
        "expletive_it_object_raising": 79.2, "tough_vs_raising_1": 72.0, "tough_vs_raising_2": 88.9}),
    "determiner_noun_agreement": (95.825, {
        "determiner_noun_agreement_1": 98.8, "determiner_noun_agreement_2": 97.7,
        "determiner_noun_agreement_irregular_1": 95.7, "determiner_noun_agreement_irregular_2": 95.3,
        "determiner_noun_agreement_with_adj_2": 94.9, "determiner_noun_agreement_with_adj_irregular_1": 92.7,
        "determiner_noun_agreement_with_adj_irregular_2": 94.0, "determiner_noun_agreement_with_adjective_1": 97.5}),
    "ellipsis": (89.35, {"ellipsis_n_bar_1": 91.5, "ellipsis_n_bar_2": 87.2}),
    "filler_gap_dependency": (81.27142857, {
        "wh_questions_object_gap": 84.2, "wh_questions_subject_gap": 95.6,
        "wh_questions_subject_gap_long_distance": 87.1, "wh_vs_that_no_gap": 96.8,
        "wh_vs_that_no_gap_long_distance": 93.8, "wh_vs_that_with_gap": 55.1,
        "wh_vs_that_with_gap_long_distance": 56.3}),
    "irregular_forms": (91.9, {"irregular_past_participle_adjectives": 97.7, "irregular_past_participle_verbs": 86.1}),
    "island_effects": (72.725, {
        "adjunct_island": 89.4, "complex_NP_island": 72.2,
        "coordinate_structure_constraint_complex_left_branch": 81.0,
        "coordinate_structure_constraint_object_extraction": 85.4, "left_branch_island_echo_question": 52.3,
        "left_branch_island_simple_question": 87.1, "sentential_subject_island": 35.5, "wh_island": 78.9}),
    "npi_licensing": (76.82857143, {
        "matrix_question_npi_licensor_present": 65.4, "npi_present_1": 64.8, "npi_present_2": 64.3,
        "only_npi_licensor_present": 94.5, "only_npi_scope": 78.5, "sentential_negation_npi_licensor_present": 97.1,
        "sentential_negation_npi_scope": 73.2}),
    "quantifiers": (79.025, {
        "existential_there_quantifiers_1": 99.5, "existential_there_quantifiers_2": 42.4,
        "superlative_quantifiers_1": 87.0, "superlative_quantifiers_2": 87.2}),
    "subject_verb_agreement": (86.35, {
        "distractor_agreement_relational_noun": 79.5, "distractor_agreement_relative_clause": 65.7,
        "irregular_plural_subject_verb_agreement_1": 92.8, "irregular_plural_subject_verb_agreement_2": 92.4,
        "regular_plural_subject_verb_agreement_1": 96.7, "regular_plural_subject_verb_agreement_2": 91.0}),
}
# fmt: on
GPT2_BY_PARADIGM, GPT2_BY_PHENOMENON = 83.0238806, 84.77

PAIRS = [
    ("The cats sleep.", "The cats sleeps."),
    ("It was the same.", "It was the same."),
    ("Zoë: Did you?\nA: Yes, I did.", "Zoë: Did you?\nA: Yes, you did."),
]
needs_blimp = pytest.mark.skipif(not (SHARED / "blimp").is_dir(), reason="needs BLiMP beside the checkout")


def write(path: Path, pairs: Any = PAIRS, **fields: Any) -> Path:
    rows = [{"sentence_good": good, "sentence_bad": bad, **fields} for good, bad in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path | str, **options: Any) -> MinimalPairs:
    [task] = load_minimal_pairs("blimp", TaskOptions("minimal_pairs", path=str(path), **options))
    assert isinstance(task, MinimalPairs)
    return task


def problems(path: Path | str, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert all("\n" not in message for message in caught.value.messages)
    return caught.value.messages


def answered(task: MinimalPairs, margins: dict[str, list[float]]) -> dict[str, Any]:
    """The figures of a model whose margins are given for each paradigm."""
    left = {name: iter(values) for name, values in margins.items()}
    marks = [task.mark(item, scores(next(left[item.content["paradigm"]]), 0.0)) for item in task.items]
    return figures_of(task, marks)


def scores(*logprobs: float) -> list[Score]:
    return [Score(logprob - 20, 5, 20, False) for logprob in logprobs]


def tiny_model(vocab_size: int, block_size: int = 64) -> GPT:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "block_size": block_size,
        "vocab_size": vocab_size,
    }
    model = GPT(Shape(**sizes, **PRESETS["llama"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def of_bytes() -> Tokenizer:
    return Tokenizer("bytes", ByteBpe({bytes([i]): i for i in range(256)}, r"[\s\S]", {END_OF_TEXT: 256}))


def evaluated(task: MinimalPairs, tokenizer: Tokenizer, model: GPT | None = None) -> tuple[Any, dict[str, Any]]:
    """The marks and figures of a tiny model."""
    model = model or tiny_model(tokenizer.n_vocab + 7)
    respondent = Respondent(Scorer(model, tokenizer, "cpu", contextlib.nullcontext), "tiny")
    answers = AnswerFile(None)
    answer_items(task, respondent, answers)
    marks = marks_of(task, answers, "tiny")
    return marks, figures_of(task, marks)


def test_the_averages_are_those_that_the_authors_of_blimp_published(tmp_path: Path) -> None:
    accuracies = {name: value for _, part in GPT2.values() for name, value in part.items()}
    for name in accuracies:
        write(tmp_path / f"{name}.jsonl", [("a", "b")], field="none", linguistics_term="none")
    task = load(tmp_path)
    marks = []
    for item in task.items:
        right, wrong = (task.mark(item, scores(margin, 0.0)) for margin in (1.0, -1.0))
        hits = round(10 * accuracies[item.content["paradigm"]])
        marks += [right] * hits + [wrong] * (1000 - hits)

    figures = figures_of(task, marks)

    assert figures["items"] == 67_000
    assert figures["paradigms"] == 67
    assert 100 * figures["score_by_paradigm"] == pytest.approx(GPT2_BY_PARADIGM)
    assert 100 * figures["score_by_phenomenon"] == pytest.approx(GPT2_BY_PHENOMENON, abs=0.005)
    assert figures["score"] == pytest.approx(figures["score_by_phenomenon"])
    published = {name: average for name, (average, _) in GPT2.items()}
    assert {name: 100 * part["score"] for name, part in figures["by_phenomenon"].items()} == pytest.approx(published)
    low, high = figures["interval"]
    assert low < figures["score"] < high < low + 0.01
    assert figures["below_chance"] == 3  # 35.5, 42.4 and 46.8 %
    assert figures["above_chance"] == 63  # all others but 52.3 %


def test_the_phenomena_have_the_sizes_of_the_paper() -> None:
    sizes = {
        "anaphor_agreement": 2, "argument_structure": 9, "binding": 7, "control_raising": 5, "determiner_noun_agreement": 8,
        "ellipsis": 2, "filler_gap_dependency": 7, "irregular_forms": 2, "island_effects": 8, "npi_licensing": 7,
        "quantifiers": 4, "subject_verb_agreement": 6,
    }  # fmt: skip

    assert {name: len(paradigms) for name, paradigms in PARADIGMS.items()} == sizes
    assert set(FIELD_OF) == set(PARADIGMS)
    assert {field: len(phenomena) for field, phenomena in FIELDS.items()} == {
        "morphology": 4,
        "syntax": 4,
        "semantics": 2,
        "syntax/semantics": 2,
    }


@needs_blimp
def test_the_data_have_the_paradigms_of_the_paper(tmp_path: Path) -> None:
    rows = {}
    for file in sorted((SHARED / "blimp").iterdir()):
        with file.open(encoding="utf-8") as lines:
            first = next(lines)
        (tmp_path / file.name).write_text(first, encoding="utf-8")
        rows[file.stem] = json.loads(first)

    task = load(tmp_path)

    assert {item.content["paradigm"] for item in task.items} == set(PHENOMENON_OF)
    assert task.average == "phenomenon"
    for name, row in rows.items():
        assert PHENOMENON_OF[name] == {"s-selection": "argument_structure"}.get(
            row["linguistics_term"], row["linguistics_term"]
        )


@needs_blimp
@pytest.mark.parametrize(
    ("name", "pairs"), [("passive_1", [324, 810]), ("principle_A_case_2", [105, 287, 372, 816, 967])]
)
def test_ids_of_identical_pairs_are_those_in_the_data(name: str, pairs: list[int]) -> None:
    task = load(SHARED / "blimp" / f"{name}.jsonl")

    assert len(task.items) == 1000
    identical = [item.id for item in task.items if item.requests[0] == item.requests[1]]
    assert identical == [f"{name}:{pair}" for pair in pairs]


@pytest.mark.skipif(not (SHARED / "blimp_supplement").is_dir(), reason="needs BLiMP's supplement beside the checkout")
def test_the_supplement_is_averaged_over_its_five_tasks() -> None:
    task = load(SHARED / "blimp_supplement", average="paradigm")

    assert len({item.content["paradigm"] for item in task.items}) == 5
    assert len(task.items) == 842 + 64 + 165 + 3867 + 280
    assert any("\n" in item.requests[0].continuation for item in task.items)


def test_logprobs_are_the_sums_over_the_tokens_of_each_sentence(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    task = load(write(tmp_path / "own.jsonl"))
    model = tiny_model(264)

    marks, _ = evaluated(task, tokenizer, model)

    for (good, bad), mark in zip(PAIRS, marks, strict=True):
        for sentence, logprob in zip((good, bad), mark["logprobs"], strict=True):
            tokens = torch.tensor([[256, *sentence.encode()]])
            with torch.no_grad():
                logits = model.unembed(model.hidden(tokens[:, :-1]))
            expected = F.log_softmax(logits[0].double(), dim=-1).gather(1, tokens[0, 1:, None]).sum()
            assert logprob == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(("ties", "score"), [("half", 0.5), ("good", 1.0)])
def test_identical_sentences_are_a_tie(tmp_path: Path, ties: str, score: float) -> None:
    task = load(write(tmp_path / "own.jsonl"), ties=ties)

    marks, figures = evaluated(task, of_bytes())

    assert [mark["answer"] == "tie" for mark in marks] == [False, True, False]
    assert marks[1]["score"] == score
    assert figures["ties"] == 1
    assert figures["tied"] == ["own:1"]
    assert figures["score"] == pytest.approx((marks[0]["score"] + score + marks[2]["score"]) / 3)


def test_equally_likely_sentences_are_a_tie(tmp_path: Path) -> None:
    task = load(write(tmp_path / "own.jsonl", [("a b", "b a"), ("c d", "d c")]))

    figures = answered(task, {"own": [0.0, 2.0]})

    assert (figures["score"], figures["ties"], figures["tied"], figures["margin"]) == (0.75, 1, ["own:0"], 1.0)


def test_own_pairs_are_averaged_over_files(tmp_path: Path) -> None:
    write(tmp_path / "agreement.jsonl", [("a", "b")] * 4)
    write(tmp_path / "order.jsonl", [("a", "b")] * 2)
    task = load(tmp_path)

    figures = answered(task, {"agreement": [1.0, 1.0, 1.0, -1.0], "order": [-3.0, -1.0]})

    assert figures["average"] == "paradigm"
    assert figures["score"] == figures["score_by_paradigm"] == (0.75 + 0) / 2
    assert figures["score_by_phenomenon"] is None
    assert figures["by_phenomenon"] == figures["by_field"] == {}
    assert figures["by_paradigm"] == {
        "agreement": {"items": 4, "score": 0.75, "margin": 0.5},
        "order": {"items": 2, "score": 0.0, "margin": -2.0},
    }
    assert figures["margin"] == (0.5 - 2) / 2
    assert figures["warnings"] == []


def test_other_paradigms_have_the_phenomenon_that_they_name(tmp_path: Path) -> None:
    """As the counterparts of BLiMP in other languages do."""
    write(tmp_path / "a.jsonl", [("a", "b")] * 2, UID="ba_1", linguistics_term="ba", field="syntax")
    write(tmp_path / "b.jsonl", [("a", "b")] * 2, UID="ba_2", linguistics_term="ba", field="syntax")
    write(tmp_path / "c.jsonl", [("a", "b")] * 2, UID="le", linguistics_term="aspect", field="semantics")
    margins = {"ba_1": [1.0, 1.0], "ba_2": [1.0, -1.0], "le": [-1.0, -1.0]}

    figures = answered(load(tmp_path), margins)

    assert figures["score"] == figures["score_by_phenomenon"] == (0.75 + 0) / 2
    assert figures["score_by_paradigm"] == (1 + 0.5 + 0) / 3
    assert {name: part["score"] for name, part in figures["by_field"].items()} == {"syntax": 0.75, "semantics": 0}
    by_paradigm = answered(load(tmp_path, average="paradigm"), margins)
    assert by_paradigm["score"] == figures["score_by_paradigm"]
    write(tmp_path / "d.jsonl", [("a", "b")])
    mixed = answered(load(tmp_path), margins | {"d": [1.0]})
    assert mixed["average"] == "paradigm"
    assert mixed["warnings"] == ["no average over phenomena: only 6 of 7 pairs have a known phenomenon"]


def test_all_paradigms_may_be_in_one_file(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", UID="passive_1"), write(tmp_path / "b.jsonl", UID="wh_island")
    whole = tmp_path / "all.jsonl"
    whole.write_text(first.read_text() + second.read_text())

    task = load(whole)

    assert [item.content["paradigm"] for item in task.items] == ["passive_1"] * 3 + ["wh_island"] * 3
    assert [item.id for item in task.items] == [f"all:{i}" for i in range(6)]


def test_a_file_a_glob_and_compressed_files_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "pairs" / "one.jsonl")
    (tmp_path / "pairs" / "two.jsonl.gz").write_bytes(gzip.compress(one.read_bytes()))
    (tmp_path / "pairs" / "three.csv").write_text('sentence_good,sentence_bad,UID\n"A, b.","A, c.",\n')
    (tmp_path / "pairs" / "README.md").write_text("about the pairs")

    def paradigms(path: Path | str) -> dict[str, int]:
        return dict(Counter(item.content["paradigm"] for item in load(path).items))

    assert paradigms(tmp_path / "pairs") == {"one": 3, "three": 1, "two": 3}
    assert paradigms(one) == {"one": 3}
    assert paradigms(tmp_path / "*" / "*.jsonl*") == {"one": 3, "two": 3}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paradigms("~/pairs/*.csv") == {"three": 1}


def test_unknown_tokens_are_counted_with_a_warning(tmp_path: Path) -> None:
    words = {"<unk>": 0, "the": 1, "cat": 2, "cats": 3, "sleeps": 4, "<|endoftext|>": 5}
    tokenizer = Tokenizer("words", HfTokenizer(word_level(words), None))
    task = load(
        write(tmp_path / "own.jsonl", [("the cat sleeps", "the cats sleeps"), ("the cat eats", "the cats drink")])
    )

    marks, figures = evaluated(task, tokenizer)

    assert [mark["unknown"] for mark in marks] == [0, 2]
    assert (figures["unknown"], figures["items_unknown"]) == (2, 1)
    assert figures["warnings"] == [
        "the tokenizer does not know some of the text of 1 pairs, and reads it as one unknown token"
    ]


def word_level(words: dict[str, int]) -> dict[str, Any]:
    end = {"id": words["<|endoftext|>"], "content": "<|endoftext|>", "special": True, "single_word": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "lstrip": False, "rstrip": False, "normalized": False}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


GOOD = '{"sentence_good": "a", "sentence_bad": "b"}'
BAD_LINES = {
    "no-field": ('{"sentence_good": "a", "UID": "x"}', "no field 'sentence_bad'; its fields are sentence_good, UID"),
    "json": ('{"sentence_good": "a"', "not valid JSON"),
    "no-object": ('["a", "b"]', "is not an object"),
    "empty": ('{"sentence_good": "", "sentence_bad": "b"}', "sentence_good is empty"),
    "blank": ('{"sentence_good": "a", "sentence_bad": " \\n"}', "sentence_bad is empty"),
    "number": ('{"sentence_good": "a", "sentence_bad": 5}', "sentence_bad is 5, not a text"),
    "null": ('{"sentence_good": null, "sentence_bad": "b"}', "sentence_good is None, not a text"),
    "list": ('{"sentence_good": ["a"], "sentence_bad": "b"}', "sentence_good is ['a'], not a text"),
    "uid": ('{"sentence_good": "a", "sentence_bad": "b", "UID": 7}', "UID is 7, not a text"),
    "phenomenon": (
        '{"sentence_good": "a", "sentence_bad": "b", "linguistics_term": {}}',
        "linguistics_term is {}, not a",
    ),
    "surrogate": ('{"sentence_good": "\\ud800", "sentence_bad": "b"}', "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "huge": (json.dumps({"sentence_good": "a", "sentence_bad": ["b" * 1_000_000]}), "sentence_bad is ['bbb"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_LINES[kind]
    path = tmp_path / "own.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")

    problem, *hint = problems(path)

    assert problem.startswith(f"{path}:3: ")
    assert reason in problem
    assert len(problem) < 400
    assert "task.bad_items=skip" in hint[-1]
    task = load(path, bad_items="skip")
    assert [item.id for item in task.items] == ["own:0", "own:2"]
    assert answered(task, {"own": [1.0, 1.0]})["skipped"] == 1
    path.write_text(f"{line}\n")
    assert reason in problems(path, bad_items="skip")[0]


def test_at_most_ten_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f"{GOOD}\n" + '{"sentence_good": "a"}\n' * 14)

    messages = problems(path)

    assert [message.split(": ")[0] for message in messages[:10]] == [f"{path}:{line}" for line in range(2, 12)]
    assert messages[10].startswith("... and 4 more")


def test_bad_files_and_folders_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(GOOD.encode() + b'\n{"sentence_good": "caf\xe9", "sentence_bad": "b"}\n')
    assert problems(latin)[0].startswith(f"{latin}:2: not valid UTF-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in problems(empty)[0]
    (empty / "notes.md").write_text("nothing here")
    assert "holds no file with items" in problems(empty)[0]
    (empty / "none.jsonl").write_text("\n\n")
    assert "holds no pairs" in problems(empty)[0]
    assert "does not exist" in problems(tmp_path / "nowhere")[0]
    assert "does not exist" in problems(tmp_path / "*.csv")[0]
    with pytest.raises(UserError, match=r"needs task\.path=PATH"):
        load_minimal_pairs("blimp", TaskOptions("minimal_pairs"))


def test_two_files_of_the_same_name_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a" / "one.jsonl"), write(tmp_path / "b" / "one.jsonl")

    [problem] = problems(tmp_path / "*" / "*.jsonl")

    assert problem.startswith(f"{first} and {second} are both named 'one'")


@needs_blimp
def test_sums_of_blimp_sentences_equal_those_computed_one_by_one() -> None:
    task = load(SHARED / "blimp" / "passive_1.jsonl")
    task = MinimalPairs("blimp", task.options, task.items[300:325], task.average)
    model = tiny_model(264, block_size=128)

    marks, _ = evaluated(task, of_bytes(), model)

    ours = np.asarray([mark["logprobs"] for mark in marks])
    for row, item in zip(ours, task.items, strict=True):
        for logprob, request in zip(row, item.requests, strict=True):
            tokens = torch.tensor([[256, *request.continuation.encode()]])
            with torch.no_grad():
                nats = F.cross_entropy(model.unembed(model.hidden(tokens[:, :-1]))[0], tokens[0, 1:], reduction="sum")
            assert logprob == pytest.approx(-float(nats), abs=1e-4)
    assert marks[24]["answer"] == "tie"
