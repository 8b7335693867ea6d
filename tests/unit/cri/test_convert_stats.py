"""Events on the wire."""

import pytest

from cri.convert_stats import event_message
from cri.events import ContainerEvent, EventType
from protos import api_pb2 as pb
from tests.unit.cri.usages import CONTAINER, POD


@pytest.mark.parametrize("type_", EventType)
def test_an_event_on_the_wire(type_):
    message = event_message(ContainerEvent("c", type_, 99, POD, (CONTAINER,)))
    assert message.container_event_type == type_.value
    assert pb.ContainerEventType.Name(message.container_event_type).startswith(
        f"CONTAINER_{type_.name}"
    )
    assert (message.container_id, message.created_at) == ("c", 99)
    assert message.pod_sandbox_status.metadata.uid == "u"
    assert [status.id for status in message.containers_statuses] == ["c"]
