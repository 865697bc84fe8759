"""Names of pods: the kubelet's pod-resources socket says who has which device, its log folder whose container is whose."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import grpc

from switchgear.agent.association.identity import Owner
from switchgear.agent.sources.gpu import normal_pci
from switchgear.kubelet import pod_resources_pb2 as pb

log = logging.getLogger(__name__)

#: Of the kubelet's API, whose package is `v1` on the wire.
METHOD = "/v1.PodResourcesLister/List"
#: The kubelet's own bound of an answer.
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_TIMEOUT_S = 1.0
#: More than a node's GPUs have users, however they are shared.
_GIVEN_MAX = 1024
#: More containers than a node can have.
_LOGS_MAX = 4096
#: The kubelet links POD_NAMESPACE_CONTAINER-ID.log to each container's log; none of the names has an underscore.
_LOG = re.compile(r"([^_]+)_([^_]+)_(.+)-([0-9a-f]{64})\.log")
# Older device plugins name an instance by GPU, GPU instance and compute instance; GKE's by the device's number.
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-f-]+)/(\d+)/\d+")
_GKE = re.compile(r"nvidia(\d+)(?:/gi(\d+))?")
# Of a GPU that is shared by time the plugin hands out GPU-…::0, GPU-…::1; GKE's nvidia0/vgpu0, nvidia0/vgpu1.
_SHARE = re.compile(r"::\d+$|/vgpu\d+$")


class Place(NamedTuple):
    """A GPU, or one MIG GPU instance of it."""

    gpu: int
    mig: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceIds:
    """The node's GPUs as a device plugin may name them: by UUID, and by PCI address as `normal_pci` writes it."""

    by_uuid: Mapping[str, int]
    by_pci: Mapping[str, int]

    def place(self, device_id: str) -> Place | None:
        """None for what is no GPU of this node, or a MIG instance's own UUID, which only the driver could resolve."""
        device_id = _SHARE.sub("", device_id)
        if device_id in self.by_uuid:
            return Place(self.by_uuid[device_id])
        if (match := _OLD_MIG.fullmatch(device_id)) and match[1] in self.by_uuid:
            return Place(self.by_uuid[match[1]], int(match[2]))
        if (match := _GKE.fullmatch(device_id)) and int(match[1]) in self.by_uuid.values():
            return Place(int(match[1]), int(match[2]) if match[2] else None)
        if (gpu := self.by_pci.get(normal_pci(device_id))) is not None:
            return Place(gpu)
        return None


class PodResources:
    """The kubelet's answer, for one thread; a node without a kubelet costs one look at the file system."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: grpc.Channel | None = None
        self._failed = False

    def list(self, devices: DeviceIds) -> list[tuple[Place, Owner]]:
        """Who was given which GPU, processes on it or not. Empty when the kubelet does not tell; the log says so once."""
        try:
            there = self._socket.exists()
        except OSError as error:  # a folder that only root may enter
            self._tell(error)
            return []
        if not there:
            self.close()
            return []
        if self._channel is None:
            options = [("grpc.max_receive_message_length", _ANSWER_BYTES_MAX), ("grpc.enable_http_proxy", 0)]
            self._channel = grpc.insecure_channel(f"unix://{self._socket.absolute()}", options)
        call = self._channel.unary_unary(
            METHOD,
            request_serializer=pb.ListPodResourcesRequest.SerializeToString,
            response_deserializer=pb.ListPodResourcesResponse.FromString,
        )
        try:
            answer: pb.ListPodResourcesResponse = call(pb.ListPodResourcesRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            self._tell(error)
            return []
        self._failed = False
        return list(islice(_given(answer, devices), _GIVEN_MAX))

    def _tell(self, error: Exception) -> None:
        if not self._failed:
            log.warning("the kubelet does not tell who has which GPU (%s): %s", self._socket, error)
        self._failed = True

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _given(answer: pb.ListPodResourcesResponse, devices: DeviceIds) -> Iterable[tuple[Place, Owner]]:
    for pod in answer.pod_resources:
        for container in pod.containers:
            owner = Owner(pod=pod.name, namespace=pod.namespace, container=container.name)
            for device in container.devices:
                for device_id in device.device_ids:
                    if (place := devices.place(device_id)) is not None:
                        yield place, owner


def container_owners(container_ids: Iterable[str], logs: Path = Path("/var/log/containers")) -> dict[str, Owner]:
    """Names of those containers, where the kubelet's log folder can be read."""
    wanted = set(container_ids)
    found = dict[str, Owner]()
    if not wanted:
        return found
    try:
        with os.scandir(logs) as entries:
            for _, entry in zip(range(_LOGS_MAX), entries, strict=False):
                match = _LOG.fullmatch(entry.name)
                if match and match[4] in wanted:
                    found[match[4]] = Owner(pod=match[1], namespace=match[2], container=match[3])
    except OSError:
        pass  # no kubelet here, or not for us
    return found
