"""Protobuf's encoding against protobuf's."""

import pytest

from cri.encoding import Field, stamp, uint64_value, varint
from protos import api_pb2 as pb

NUMBERS = [0, 1, 2**64 - 1, *(edge + by for edge in (2**7, 2**14, 2**21, 2**63) for by in (-1, 0))]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers(number):
    body = pb.PsiData(Total=number).SerializeToString()
    assert Field(pb.PsiData, "Total").number(number) == body
    assert body == (b"\x08" + varint(number) if number else b"")
    value = pb.UInt64Value(value=number).SerializeToString()
    assert uint64_value(number) == bytes([len(value)]) + value


@pytest.mark.parametrize(
    "number", [*NUMBERS, *(2**28 + by for by in (-1, 0, 1)), 1 << 60 | 1 << 27]
)
def test_times_are_numbers(number):
    assert stamp(number) == varint(number)


@pytest.mark.parametrize("write", [varint, stamp])
@pytest.mark.parametrize("number", [-1, -(2**63), 2**64])
def test_what_is_no_number_of_the_wire_is_refused(write, number):
    with pytest.raises(ValueError, match=str(number)):
        write(number)


@pytest.mark.parametrize("share", [0.0, 0.01, 99.99])
def test_doubles(share):
    assert Field(pb.PsiData, "Avg60").double(share) == pb.PsiData(Avg60=share).SerializeToString()


@pytest.mark.parametrize("text", ["", "x", "ö" * 100, "y" * 20_000])
def test_texts_of_a_list_and_messages_in_messages(text):
    labels = Field(pb.Metric, "label_values")
    message = pb.Metric(label_values=[text, text])
    assert labels.text(text) * 2 == message.SerializeToString()
    inside = pb.PodSandboxMetrics(metrics=[message])
    field = Field(pb.PodSandboxMetrics, "metrics")
    assert field.message(message.SerializeToString()) == inside.SerializeToString()


def test_a_field_that_the_contract_does_not_have_is_found_at_once():
    with pytest.raises(KeyError):
        Field(pb.CpuUsage, "timestamps")
    with pytest.raises(KeyError):
        Field(pb.VersionRequest, "none")
