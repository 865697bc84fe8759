"""The tables that all services share through the functions of this package."""

from __future__ import annotations

from sqlalchemy import BigInteger, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.store.base import Base


class RevisionRow(Base):
    """The number of the newest write of a service."""

    __tablename__ = "revisions"

    service: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class RequestRow(Base):
    """A mutation that was done, and what it answered."""

    __tablename__ = "requests"

    #: Full name of the request's message.
    request_type: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    response: Mapped[bytes] = mapped_column(LargeBinary)
    create_time_unix_ns: Mapped[int] = mapped_column(BigInteger, index=True)


class LeaseRow(Base):
    """Who may act under a name, and until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    token: Mapped[int] = mapped_column(BigInteger)
    expire_time_unix_ns: Mapped[int] = mapped_column(BigInteger)


class PolicyModeRow(Base):
    """The mode of a policy that somebody has set through the API."""

    __tablename__ = "policy_modes"

    policy: Mapped[str] = mapped_column(String(100), primary_key=True)
    mode: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(200))
    update_time_unix_ns: Mapped[int] = mapped_column(BigInteger)


class InstallationRow(Base):
    """The one row of this installation, written by the migration."""

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(63))
