"""The names of splits, and where a text is cut. Expected values are written by hand."""

from __future__ import annotations

import random

import pytest

from data.splits import cut_position, roles_of, split_names, without_split


@pytest.mark.parametrize(
    ("files", "training", "held_out"),
    [
        # folders at the top, in any case; the first validation name in order of preference
        ("train/a validation/b test/c README.md", "train/a", "validation/b"),
        ("train/a val/b validation/c", "train/a", "validation/c"),
        ("TRAIN/a Val/b", "TRAIN/a", "Val/b"),
        ("train/a test/b", "train/a", "test/b"),
        ("deep/er/train/x/a deep/er/dev/b", "deep/er/train/x/a", "deep/er/dev/b"),
        ("books/train/a books/dev/b news/train/c news/dev/d e", "books/train/a news/train/c", "books/dev/b news/dev/d"),
        # file names
        ("train.jsonl val.jsonl", "train.jsonl", "val.jsonl"),
        (
            "TinyStoriesV2-GPT4-train.txt TinyStoriesV2-GPT4-valid.txt",
            "TinyStoriesV2-GPT4-train.txt",
            "TinyStoriesV2-GPT4-valid.txt",
        ),
        ("wiki.train.txt wiki.valid.txt wiki.test.txt", "wiki.train.txt", "wiki.valid.txt"),
        ("data/train-0-of-2.parquet data/test-0-of-1.parquet", "data/train-0-of-2.parquet", "data/test-0-of-1.parquet"),
        ("c4-train.00-of-24.json.gz c4-val.0-of-8.json.gz", "c4-train.00-of-24.json.gz", "c4-val.0-of-8.json.gz"),
        ("my_train_data.csv my_val_data.csv", "my_train_data.csv", "my_val_data.csv"),
        ("train/a val.jsonl", "train/a", "val.jsonl"),
        # files without a name are training text beside a validation split alone
        ("wiki.txt wiki.dev.txt", "wiki.txt", "wiki.dev.txt"),
        ("a.txt b/c.txt val/d.txt", "a.txt b/c.txt", "val/d.txt"),
        # no split of its own
        ("train.jsonl", "", ""),
        ("validation/a validation/b", "", ""),
        ("train/a b", "", ""),
        ("a.txt test/b.txt", "", ""),
        ("a.md dev-guide.md valid-xhtml.md", "", ""),
        ("pkg/a.txt pkg/dev/b.txt c.txt", "", ""),
        ("training.txt latest.txt evaluation.txt", "", ""),
        ("train_val.txt a.txt", "", ""),
    ],
)
def test_the_names_of_folders_and_files_give_the_split(files: str, training: str, held_out: str) -> None:
    listed = files.split()
    names = split_names([tuple(file.split("/")) for file in listed])
    roles = roles_of(names)
    for split, expected in (("train", training), ("val", held_out)):
        chosen = [file for file, name in zip(listed, names, strict=True) if roles.get(name) == split]
        assert chosen == expected.split()


@pytest.mark.parametrize(
    ("stem", "label"),
    [("wiki-train", "wiki"), ("V2-GPT4-valid", "V2-GPT4"), ("train-00000-of", ""), ("latest", "latest"), ("val", "")],
)
def test_a_label_does_not_name_the_split(stem: str, label: str) -> None:
    assert without_split(stem) == label


@pytest.mark.parametrize(
    ("text", "near", "expected"),
    [
        ("ab\ncd\nef\n", 3, 3),  # the start of a line
        ("ab\ncd\nef\n", 4, 6),
        ("ab\ncd\nef\n", 7, 7),  # no later line
        ("éé", 3, 2),  # inside the last character: before it
        ("a😀b", 2, 5),
        ("😀", 2, 0),  # cannot be cut
        ("a", 0, 0),
    ],
)
def test_a_text_is_cut_at_a_line_or_a_character(text: str, near: int, expected: int) -> None:
    raw = text.encode()
    assert cut_position(lambda start, n: raw[start : start + n], near, len(raw)) == expected


def test_both_pieces_of_a_cut_have_whole_characters() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        raw = "".join(rng.choices("ab\né東😀", k=rng.randint(2, 12))).encode()
        cut = cut_position(lambda start, n: raw[start : start + n], rng.randint(1, len(raw) - 1), len(raw))  # noqa: B023
        assert raw[:cut].decode()
        assert raw[cut:].decode()
