"""By what an installation is known to others: all processes on one database are one installation."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.store.tables import InstallationRow


async def installation_name(session: AsyncSession) -> str:
    """Eight hexadecimal digits, made when the database was migrated to 0015; a copy of the database has the same."""
    return (await session.scalars(select(InstallationRow.name))).one()
