"""Calls about the node: Version, Status, RuntimeConfig, UpdateRuntimeConfig."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cri import validate
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from cri.rpc.ports import Node

RUNTIME_NAME: Final = "podwright"
#: Version of the kubelet's runtime API before it had one of its own; every runtime answers this.
KUBELET_API_VERSION: Final = "0.1.0"
CRI_API_VERSION: Final = "v1"

_DRIVERS: Final = {"cgroupfs": pb.CGROUPFS, "systemd": pb.SYSTEMD}


class NodeCalls:
    """The methods about the runtime itself."""

    def __init__(self, node: Node, version: str) -> None:
        self._node = node
        self._version = version

    async def version(self, request: pb.VersionRequest) -> pb.VersionResponse:
        """Who answers here."""
        return pb.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name=RUNTIME_NAME,
            runtime_version=self._version,
            runtime_api_version=CRI_API_VERSION,
        )

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        """Conditions, handlers and features of the node."""
        facts = self._node.facts()
        response = pb.StatusResponse(
            status=pb.RuntimeStatus(
                conditions=[
                    pb.RuntimeCondition(
                        type=c.type, status=c.status, reason=c.reason, message=c.message
                    )
                    for c in facts.conditions
                ]
            ),
            runtime_handlers=[
                pb.RuntimeHandler(
                    name=handler.name,
                    features=pb.RuntimeHandlerFeatures(
                        recursive_read_only_mounts=handler.recursive_read_only_mounts,
                        user_namespaces=handler.user_namespaces,
                    ),
                )
                for handler in facts.handlers
            ],
            features=pb.RuntimeFeatures(
                supplemental_groups_policy=facts.supplemental_groups_policy,
                user_namespaces_host_network=facts.user_namespaces_host_network,
                mount_options=facts.mount_options,
            ),
        )
        if request.verbose:
            for key, value in facts.info.items():
                response.info[key] = msgspec.json.encode(value).decode()
        return response

    async def runtime_config(self, request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """The cgroup driver, which the kubelet follows."""
        driver = _DRIVERS[self._node.facts().cgroup_driver]
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def update_runtime_config(
        self, request: pb.UpdateRuntimeConfigRequest
    ) -> pb.UpdateRuntimeConfigResponse:
        """Take note of the node's pod addresses.

        Success also where they are of no use here, as with every runtime: the kubelet sends them to
        whatever network there is, and repeats a failure for ever.
        """
        cidr = request.runtime_config.network_config.pod_cidr
        await self._node.set_pod_cidr(
            validate.text(cidr, "runtime_config.network_config.pod_cidr", limit=validate.NAME_LIMIT)
        )
        return pb.UpdateRuntimeConfigResponse()
