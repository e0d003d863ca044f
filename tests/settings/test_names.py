"""Model names: which are valid, and what a file's name becomes."""

from __future__ import annotations

import pytest

from corral.settings import MODEL_NAME_PATTERN, model_name_from_file, model_name_problem


@pytest.mark.parametrize("name", ["a", "7b", "qwen-7b", "org/phi:q4", "a@b+c.d_e", "a" * 200, "a/../b"])
def test_a_good_name_has_no_problem(name: str) -> None:
    assert model_name_problem(name) is None


@pytest.mark.parametrize("name", ["", "-a", ".a", "/a", "a b", "a\n", "ä", "a*", "a\\b", "a%2F", "é" * 3])
def test_a_bad_name_is_told_the_alphabet(name: str) -> None:
    assert model_name_problem(name) == (
        "must begin with a letter or digit and go on with letters, digits and . _ : / @ + -"
    )


def test_a_long_name_is_told_so() -> None:
    assert model_name_problem("a" * 201) == "is longer than 200 characters"


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("qwen-7b-Q4_K_M", "qwen-7b-Q4_K_M"),
        ("My Model (v2)", "My-Model--v2-"),
        ("--draft", "draft"),
        ("_ü_x", "x"),
        ("модель", "model"),
        ("", "model"),
        ("a" * 300, "a" * 200),
    ],
)
def test_a_file_becomes_a_model_of_its_name(stem: str, name: str) -> None:
    assert model_name_from_file(stem) == name
    assert MODEL_NAME_PATTERN.fullmatch(name)
