"""JSON from strangers ends in a value or in MalformedDocument."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.document import DEPTH_LIMIT, MalformedDocument, decode_object, encode, view
from tests.unit.cni.strategies import json_objects


class Keys(msgspec.Struct):
    name: str = ""
    count: int | None = None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a":' * (DEPTH_LIMIT + 1) + b"1" + b"}" * (DEPTH_LIMIT + 1), "nested too deeply"),
        (b"null", "not a JSON object but null"),
        (b"[]", "not a JSON object but a list"),
        (b"true", "not a JSON object but a boolean"),
        (b"1.5", "not a JSON object but a number"),
        (b'"x"', "not a JSON object but a string"),
    ],
)
def test_what_is_no_object_is_named(text, why):
    with pytest.raises(MalformedDocument, match=why):
        decode_object(text)


def test_keys_keep_their_order_and_large_numbers_their_digits():
    text = b'{"b":123456789012345678901234567890,"a":{"y":1,"x":2}}'
    assert encode(decode_object(text)) == text


def test_a_view_names_the_path_of_what_is_wrong():
    with pytest.raises(MalformedDocument, match=r"expected `str`, got `int` - at `\$.name`"):
        view({"name": 5}, Keys)
    assert view({"name": "x", "other": [1]}, Keys) == Keys(name="x")


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_the_named_error(text):
    with contextlib.suppress(MalformedDocument):
        decode_object(text)


@given(json_objects)
def test_what_was_decoded_can_be_encoded_and_is_the_same(document):
    assert decode_object(encode(document)) == document
