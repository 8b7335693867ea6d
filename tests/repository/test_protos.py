"""protos/api.proto against the facts of the protocol, name by name and number by number."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from protos import api_pb2

TOP = Path(__file__).resolve().parents[2]
FACTS = json.loads((TOP / "tests/golden/cri-v1-0.37.json").read_text())
FILE = api_pb2.DESCRIPTOR

SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("string", "bytes", "bool", "double", "int32", "int64", "uint32", "uint64")
}


def local_name(descriptor: Descriptor | EnumDescriptor) -> str:
    return descriptor.full_name.removeprefix(f"{FILE.package}.")


def type_text(field: FieldDescriptor) -> str:
    """The type as a .proto file writes it: "repeated Mount", "map<string, string>", "int64"."""
    message, enum = field.message_type, field.enum_type
    if message is not None and message.GetOptions().map_entry:
        key, value = (type_text(message.fields_by_name[part]) for part in ("key", "value"))
        return f"map<{key}, {value}>"
    if message is not None:
        name = local_name(message)
    elif enum is not None:
        name = local_name(enum)
    else:
        name = SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def fields_of(message: Descriptor) -> dict[str, list[object]]:
    return {
        field.name: [field.number, type_text(field)]
        + (["deprecated"] if field.GetOptions().deprecated else [])
        for field in message.fields
    }


def test_package_is_the_one_clients_dial() -> None:
    assert FILE.package == FACTS["package"] == "runtime.v1"


def test_services_have_exactly_the_rpcs_of_the_facts() -> None:
    ours = {
        service.name: {
            method.name: [
                local_name(method.input_type),
                ("stream " if method.server_streaming else "") + local_name(method.output_type),
            ]
            for method in service.methods
        }
        for service in FILE.services_by_name.values()
    }
    assert ours == FACTS["services"]
    assert sum(len(rpcs) for rpcs in ours.values()) == 43
    assert not any(m.client_streaming for s in FILE.services_by_name.values() for m in s.methods)


def test_no_message_is_missing_and_none_is_invented() -> None:
    assert set(FILE.message_types_by_name) == set(FACTS["messages"])
    assert len(FACTS["messages"]) == 175


@pytest.mark.parametrize("name", FACTS["messages"])
def test_message_fields_have_the_names_numbers_and_types_of_the_facts(name: str) -> None:
    assert fields_of(FILE.message_types_by_name[name]) == FACTS["messages"][name]


def test_enums_have_the_values_of_the_facts() -> None:
    enums = [
        *FILE.enum_types_by_name.values(),
        *(e for m in FILE.message_types_by_name.values() for e in m.enum_types),
    ]
    ours = {local_name(e): {v.name: v.number for v in e.values} for e in enums}
    assert ours == FACTS["enums"]
    assert len(ours) == 11


def test_secrets_are_marked_so_that_a_log_can_leave_them_out() -> None:
    marked = {
        (message.name, field.name)
        for message in FILE.message_types_by_name.values()
        for field in message.fields
        if field.GetOptions().debug_redact
    }
    assert marked == {
        ("AuthConfig", "password"),
        ("AuthConfig", "auth"),
        ("AuthConfig", "identity_token"),
        ("AuthConfig", "registry_token"),
        ("KeyValue", "value"),
    }


def test_generated_files_are_fresh() -> None:
    run = subprocess.run([TOP / "hack/gen_protos", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
