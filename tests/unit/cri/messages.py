"""Hypothesis strategies for any protobuf message, made from its descriptor.

Texts and numbers are drawn from what requests really contain and from what they must not contain,
so that random messages get past the first check and the later ones are tried as well.
"""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

TEXTS = [
    "", "a", "web", "..", "/", "/a", "/a/b", "/a/../b", "a/b", "-x", "a\nb", "a\0b", "a=b",
    "10.0.0.1",
    "localhost/", "localhost//p.json", "runtime/default", "unconfined", "rw", "rwm", "2MB", "0-3",
    "net.ipv4.ip_forward", "memory.high", "\u202etxt", "%s$(x);", "x" * 300, "x" * 70_000,
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 4, 99, 1000, 65_535, 65_536, 2**31 - 1]
SIGNED = [-1, -1000, -(2**31)]
INT64 = [2**31, 2**32, 2**63 - 1, -(2**63)]

_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: NUMBERS + SIGNED,
    FieldDescriptor.CPPTYPE_INT64: NUMBERS + SIGNED + INT64,
    FieldDescriptor.CPPTYPE_UINT32: [*NUMBERS, 2**32 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [*NUMBERS, 2**64 - 1],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 5, 36, 51, 66, 99, -1],
}


def _scalar(field, texts):
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = st.sampled_from(texts)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return text.map(str.encode) | st.just(b"\xff")
        return text
    if field.cpp_type in _NUMBERS:
        return st.sampled_from(_NUMBERS[field.cpp_type])
    return st.floats(allow_nan=False)


def messages(cls, texts=TEXTS):
    """Any message of `cls`."""
    return _message(cls.DESCRIPTOR, texts)


def _message(descriptor, texts):
    @st.composite
    def build(draw):
        result = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if not draw(st.booleans()):
                continue
            _fill(draw, result, field, texts)
        return result

    return build()


def _fill(draw, result, field, texts):
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if is_message and field.message_type.GetOptions().map_entry:
        keys, values = field.message_type.fields_by_name.values()
        for _ in range(draw(st.integers(0, 2))):
            getattr(result, field.name)[draw(_scalar(keys, texts))] = draw(_scalar(values, texts))
    elif field.is_repeated:
        one = _message(field.message_type, texts) if is_message else _scalar(field, texts)
        getattr(result, field.name).extend(draw(st.lists(one, max_size=2)))
    elif is_message:
        getattr(result, field.name).CopyFrom(draw(_message(field.message_type, texts)))
    else:
        setattr(result, field.name, draw(_scalar(field, texts)))
