"""What the sections of the collector's configuration file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the file: what is no field of it is an error, so that a misspelt key is not silently without effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
