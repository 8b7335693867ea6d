import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.convert_pod import pod_item
from cri.rpc.lists import CHUNK_BYTES, ListCache, chunks, has_labels
from protos import api_pb2 as pb
from sandbox.model import PodConfig, PodMetadata, PodSandbox
from sandbox.states import PodState


def pod(number, name="a", **labels):
    config = PodConfig(metadata=PodMetadata(name=name, uid="u", namespace="n"), labels=labels)
    return PodSandbox(id=str(number), config=config, state=PodState.READY, created_at_ns=number)


class Counting:
    def __init__(self):
        self.encoded = []

    def __call__(self, value):
        self.encoded.append(value.id)
        return pod_item(value)


@given(st.lists(st.tuples(st.integers(0, 5), st.text(min_size=1, max_size=300)), max_size=8))
def test_joined_bytes_are_the_message(values):
    pods = [pod(number, name) for number, name in values]
    joined = ListCache(pod_item).join(pods, len(pods))
    assert pb.ListPodSandboxResponse.FromString(joined) == pb.ListPodSandboxResponse(
        items=[pod_item(one) for one in pods]
    )


def test_an_unchanged_value_is_serialised_once():
    encode = Counting()
    cache = ListCache(encode)
    pods = [pod(1), pod(2)]
    assert cache.join(pods, 2) == cache.join(pods, 2)
    assert encode.encoded == ["1", "2"]


def test_a_changed_value_is_serialised_again_even_if_equal():
    encode = Counting()
    cache = ListCache(encode)
    cache.join([pod(1)], 1)
    changed = cache.join([pod(1, name="b")], 1)
    assert encode.encoded == ["1", "1"]
    assert pb.ListPodSandboxResponse.FromString(changed).items[0].metadata.name == "b"


def test_entries_of_objects_that_are_gone_do_not_pile_up():
    cache = ListCache(pod_item)
    for number in range(1000):
        cache.join([pod(number)], 1)
    assert len(cache) < 100


def test_labels_must_all_be_there():
    assert has_labels({"a": "1", "b": "2"}, {"a": "1"})
    assert has_labels({}, {})
    assert not has_labels({"a": "1"}, {"a": "2"})
    assert not has_labels({"a": "1"}, {"b": ""})


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=20), st.integers(1, 30))
def test_chunks_lose_double_and_reorder_nothing(entries, limit):
    messages = list(chunks(entries, limit))
    assert b"".join(messages) == b"".join(entries)
    assert all(messages)
    for message in messages[:-1]:
        assert limit <= len(message) < limit + 9


@pytest.mark.slow
def test_twenty_thousand_are_streamed_in_messages_that_everyone_takes():
    pods = [pod(number, name="n" * 900) for number in range(20_000)]
    messages = list(ListCache(pod_item).stream(pods, len(pods)))
    assert max(map(len, messages)) < CHUNK_BYTES + 2000
    found = [
        p.id for m in messages for p in pb.StreamPodSandboxesResponse.FromString(m).pod_sandboxes
    ]
    assert found == [one.id for one in pods]


def test_a_stream_fills_the_cache_of_the_list_and_is_trimmed_too():
    encode = Counting()
    cache = ListCache(encode)
    pods = [pod(1), pod(2)]
    assert b"".join(cache.stream(pods, 2)) == cache.join(pods, 2)
    assert encode.encoded == ["1", "2"]
    for number in range(1000):
        list(cache.stream([pod(number)], 1))
    assert len(cache) < 100
