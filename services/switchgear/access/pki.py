"""The certificate authority of one installation and what it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pki:
    """A folder that `switchgear init` made."""

    folder: Path

    @classmethod
    def find(cls, folder: Path) -> Pki | None:
        """The PKI in that folder; None when `switchgear init` has not been run."""
        return cls(folder) if (folder / "ca.crt").exists() else None
