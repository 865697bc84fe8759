"""The scheduler's gRPC edge for nodes: checks, translates and hands on; the policies are elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core import names
from switchgear.core.errors import Aborted, Invalid, NotFound, Reason
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler import store
from switchgear.scheduler.edges import REASON_LENGTH_MAX, Context, actor_of, mutate
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.model import NodeRecord
from switchgear.scheduler.repository import Repository, Transaction
from switchgear.scheduler.store import SERVICE
from switchgear.scheduler.translate import LABELS_MAX, clean, labels_from_proto, node_to_proto
from switchgear.scheduler.wishes import LABEL_LENGTH_MAX
from switchgear.store import paging
from switchgear.store.revisions import current_revision
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc


class FleetServicer(fleet_grpc.FleetServiceServicer):
    """Nodes, as `FleetService` shows them."""

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository = repository
        self._engine = engine

    async def GetNode(self, request: fleet_pb.GetNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")
        async with self._repository.database.read() as session:
            node = await store.get_node(session, request.name)
            if node is None:
                raise NotFound(request.name)
            return await self._node(session, node)

    async def ListNodes(self, request: fleet_pb.ListNodesRequest, context: Context) -> fleet_pb.ListNodesResponse:
        size = paging.page_size(request.page_size)
        after = paging.after_text("nodes", request.page_token)
        async with self._repository.database.read() as session:
            nodes = await self._nodes(session, await store.nodes_after_name(session, after or "", size + 1))
            revision = await current_revision(session, SERVICE)
        page = nodes[: paging.fitting(nodes[:size])]
        return fleet_pb.ListNodesResponse(
            nodes=page,
            next_page_token=paging.page_token("nodes", page[-1].name) if len(nodes) > len(page) else "",
            revision=revision,
        )

    async def WatchNodes(
        self, request: fleet_pb.WatchNodesRequest, context: Context
    ) -> AsyncIterator[fleet_pb.WatchNodesResponse]:
        async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, fleet_pb.Node]]:
            nodes = await store.nodes_after_revision(session, after, limit)
            return list(zip((node.revision for node in nodes), await self._nodes(session, nodes), strict=True))

        async for revision, node in self._repository.feed.watch(request.revision, page):
            yield fleet_pb.WatchNodesResponse(node=node, revision=revision)

    async def CordonNode(self, request: fleet_pb.CordonNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")
        reason = clean(request.reason.strip(), REASON_LENGTH_MAX)
        if not reason:
            raise Invalid(
                "reason is missing: say why, it is shown wherever the node is", Reason.BAD_FIELD, field="reason"
            )

        async def act(transaction: Transaction) -> fleet_pb.Node:
            node = await _node_with_etag(transaction, request.name, request.etag)
            after = node_life.cordon(node, reason, actor_of(request.actor))
            return await self._node(transaction.session, await transaction.put_node(after))

        return await mutate(self._repository, request.request_id, request, fleet_pb.Node, act)

    async def UncordonNode(self, request: fleet_pb.UncordonNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")

        async def act(transaction: Transaction) -> fleet_pb.Node:
            node = await _node_with_etag(transaction, request.name, request.etag)
            after = await transaction.put_node(node_life.uncordon(node, actor_of(request.actor)), healthy_anew=True)
            return await self._node(transaction.session, after)

        return await mutate(self._repository, request.request_id, request, fleet_pb.Node, act)

    async def LabelNode(self, request: fleet_pb.LabelNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")
        given = labels_from_proto(request.labels)
        for taint in (*request.add_taints, *request.remove_taints):
            if not 0 < len(taint) <= LABEL_LENGTH_MAX or "\0" in taint:
                raise Invalid(
                    f"a taint has 1 to {LABEL_LENGTH_MAX} characters without NUL", Reason.BAD_FIELD, field="add_taints"
                )

        async def act(transaction: Transaction) -> fleet_pb.Node:
            node = await transaction.node(request.name)
            labels = {key: value for key, value in {**dict(node.labels), **dict(given)}.items() if value}
            taints = (node.taints - set(request.remove_taints)) | set(request.add_taints)
            if len(taints) > LABELS_MAX:
                raise Invalid(f"a node has at most {LABELS_MAX} taints", Reason.LIMIT_EXCEEDED, field="add_taints")
            after = replace(node, labels=labels_from_proto(labels), taints=frozenset(taints))
            return await self._node(transaction.session, await transaction.put_node(after))

        return await mutate(self._repository, request.request_id, request, fleet_pb.Node, act)

    async def _nodes(self, session: AsyncSession, nodes: Sequence[NodeRecord]) -> list[fleet_pb.Node]:
        allocated, status = await store.gpus_allocated(session), dict(self._engine.observe().nodes)
        return [node_to_proto(node, allocated.get(node.name, 0), status.get(node.name)) for node in nodes]

    async def _node(self, session: AsyncSession, node: NodeRecord) -> fleet_pb.Node:
        return (await self._nodes(session, [node]))[0]


async def _node_with_etag(transaction: Transaction, name: str, etag: str) -> NodeRecord:
    node = await transaction.node(name)
    if etag and etag != str(node.revision):
        raise Aborted(
            f"{name} has changed since it was read; read it again and decide anew",
            Reason.ETAG_MISMATCH,
            name=name,
            etag=str(node.revision),
        )
    return node
