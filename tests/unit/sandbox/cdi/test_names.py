"""Names of devices, and which a container asks for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sandbox.cdi.names import parse_name, wanted_devices
from sandbox.host.errors import InvalidArgument
from tests.kit.spec_inputs import CONTAINER


@pytest.mark.parametrize(
    "text", ["vendor.com/gpu=0", "a/b=c", "v-1.x/c_2=GPU-01:02.3", "vendor.com/net=all"]
)
def test_names(text):
    name = parse_name(text, "here")
    assert str(name) == text
    assert name.kind == text.partition("=")[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vendor.com/gpu",
        "vendor.com/gpu=",
        "gpu=0",
        "/gpu=0",
        "vendor/=0",
        "1vendor/gpu=0",
        "vendor/gpu-=0",
        "vendor/gpu=0-",
        "vendor/gpu=a b",
        "vendor/gpu=a/b",
        "vendor/gpu=a\n",
        "vendor/g/u=0",
        "vendor.com/gpu=é",
        "v/c=" + "a" * 600,
    ],
)
def test_what_is_no_name(text):
    with pytest.raises(InvalidArgument, match="not the name of a CDI device"):
        parse_name(text, "here")


def test_field_first_then_annotations_each_once():
    config = replace(
        CONTAINER,
        cdi_devices=("v/c=b", "v/c=a"),
        annotations={
            "cdi.k8s.io/z_1": "v/c=d",
            "cdi.k8s.io/a_1": "v/c=a, v/c=c",
            "other/cdi.k8s.io": "v/c=e",
        },
    )
    assert [name.device for name in wanted_devices(config)] == ["b", "a", "c", "d"]


def test_a_wrong_name_says_where_it_stood_and_there_is_an_end():
    with pytest.raises(InvalidArgument, match=r"annotation cdi\.k8s\.io/x"):
        wanted_devices(replace(CONTAINER, annotations={"cdi.k8s.io/x": "v/c=a,"}))
    with pytest.raises(InvalidArgument, match="CDI_devices"):
        wanted_devices(replace(CONTAINER, cdi_devices=("x",)))
    with pytest.raises(InvalidArgument, match="more than 512"):
        wanted_devices(replace(CONTAINER, cdi_devices=tuple(f"v/c={n}" for n in range(513))))
