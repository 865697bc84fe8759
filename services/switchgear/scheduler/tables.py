"""The scheduler's tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.store.base import Base, Json


class NodeRow(Base):
    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    address: Mapped[str] = mapped_column(Text)
    gpus: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    agent_version: Mapped[str] = mapped_column(Text)
    metrics_address: Mapped[str] = mapped_column(Text)
    last_seen_unix_ns: Mapped[int] = mapped_column(BigInteger)
    reachable: Mapped[bool]
    standing: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
    healthy_revision: Mapped[int] = mapped_column(BigInteger)
    #: What jobs are matched with: CPU, memory, labels and taints.
    traits: Mapped[dict[str, Any]] = mapped_column(Json)


class JobRow(Base):
    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    placement_epoch: Mapped[int] = mapped_column(BigInteger)
    placed_nodes: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    excluded_nodes: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    create_revision: Mapped[int] = mapped_column(BigInteger)
    create_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    #: Null while the job has not ended.
    end_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
    trace_parent: Mapped[str] = mapped_column(String(64))
    turn: Mapped[dict[str, Any]] = mapped_column(Json)

    __table_args__ = (Index("ix_jobs_create_revision", "create_revision", unique=True),)


class QueueRow(Base):
    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    parent: Mapped[str] = mapped_column(String(80))
    guaranteed_gpus: Mapped[float]
    limit_gpus: Mapped[float | None]
    weight: Mapped[float]
    keeps: Mapped[bool]


class ReservationRow(Base):
    __tablename__ = "reservations"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    nodes: Mapped[list[Any]] = mapped_column(Json)
    start_unix_ns: Mapped[int] = mapped_column(BigInteger)
    end_unix_ns: Mapped[int] = mapped_column(BigInteger)
    queues: Mapped[list[Any]] = mapped_column(Json)
    jobs: Mapped[list[Any]] = mapped_column(Json)
    reason: Mapped[str] = mapped_column(Text)


class RunRow(Base):
    __tablename__ = "job_runs"

    job: Mapped[str] = mapped_column(String(80), primary_key=True)
    create_revision: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user: Mapped[str] = mapped_column(String(200))
    key: Mapped[str] = mapped_column(String(200))
    queue: Mapped[str] = mapped_column(String(80))
    gpus: Mapped[float]
    seconds: Mapped[float]
    end_unix_ns: Mapped[int] = mapped_column(BigInteger, index=True)
    submit_unix_ns: Mapped[int | None] = mapped_column(BigInteger)


class EvidenceRow(Base):
    """Of an attempt that is over."""

    __tablename__ = "attempt_evidence"

    job: Mapped[str] = mapped_column(String(80), primary_key=True)
    create_revision: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    alike: Mapped[list[Any]] = mapped_column(Json)
    nodes: Mapped[list[Any]] = mapped_column(Json)
    gpu_model: Mapped[str] = mapped_column(Text)
    steps_per_s: Mapped[float | None]
    held_up_by: Mapped[str] = mapped_column(String(80), index=True)
    told_unix_ns: Mapped[int] = mapped_column(BigInteger, index=True)


class UsageRow(Base):
    __tablename__ = "queue_usage"

    queue: Mapped[str] = mapped_column(String(80), primary_key=True)
    user: Mapped[str] = mapped_column(String(200), primary_key=True)
    gpu_s: Mapped[float]
    time_unix_ns: Mapped[int] = mapped_column(BigInteger)
