"""Secrets never reach the page, however the YAML or the command spells them."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.reports.masking import mask_command, mask_yaml


@pytest.mark.parametrize(
    "text",
    [
        "api_key: hunter2",
        "API_KEY: hunter2",
        "a:\n  b:\n  - wandb.Token: hunter2\n    c: 1",
        "a: {password: hunter2, b: 1}",
        "my-secret: |\n  hunter2\n  hunter2",
        "secrets:\n  one: hunter2\n  two: [hunter2]",
        "token: !custom hunter2",
        "a: &x {b: hunter2}\nkey: *x\na2: {token: hunter2}".replace("a: &x {b: hunter2}", "key0: &x {b: hunter2}"),
        "url: https://me:hunter2@example.org/x",
        "args: ['--token=hunter2']",
        "key: hunter2\nbroken: [1",
        "a:\n  secret:\n    b: hunter2\n    c: [hunter2\nd: 1",
        "\ttoken: hunter2",
    ],
)
def test_secret_is_hidden(text):
    assert "hunter2" not in mask_yaml(text)


def test_everything_else_stays_as_it_was():
    text = "model:\n  class_path: a.B\n  dims: [1, 2]\n  norm: tokens\nempty: null\n"
    assert yaml.safe_load(mask_yaml(text)) == yaml.safe_load(text)


def test_order_of_keys_stays():
    assert mask_yaml("z: 1\na: 2\n") == "z: 1\na: 2\n"


@given(
    st.lists(
        st.sampled_from(["a", "- ", "key", ": ", "x9y9", "\n", "  ", "{", "}", "|", "&b ", "*b", "'", '"']), max_size=30
    )
)
def test_any_text_is_masked_without_an_error(pieces):
    assert isinstance(mask_yaml("".join(pieces)), str)


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        (["--a.token", "x", "--b", "y"], ["--a.token", "***", "--b", "y"]),
        (["--a.token=x"], ["--a.token=***"]),
        (["--use_key", "--lr", "1"], ["--use_key", "--lr", "1"]),
        (["--c", "{api_key: x, b: 1}"], ["--c", "{api_key: ***, b: 1}"]),
        (["https://me:x@h/p"], ["https://***@h/p"]),
        (["key.png"], ["key.png"]),
    ],
)
def test_command_hides_values_of_sensitive_flags(given_, shown):
    assert mask_command(given_) == shown
