"""The collector's configuration file (TOML): where its telemetry goes to and comes from beyond its agents."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from switchgear.collector.export.settings import OtlpExports, RemoteWrites
from switchgear.collector.imports.settings import OtlpImport, Scrapes
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.memory import WindowSettings
from switchgear.collector.recording.settings import Recording
from switchgear.collector.settings import Section
from switchgear.collector.sharding import Sharding
from switchgear.collector.webhooks.settings import Webhooks
from switchgear.core.errors import Invalid, Reason

#: Hundreds of targets fit; a file beyond it is not a configuration.
BYTES_MAX = 1024 * 1024
_ERRORS_SHOWN = 5


class CollectorConfig(Section):
    """The whole file. Empty: agents only, nothing goes out."""

    ingest: IngestSettings = IngestSettings()
    windows: WindowSettings = WindowSettings()
    remote_write: RemoteWrites = ()
    otlp_export: OtlpExports = ()
    otlp_import: OtlpImport = OtlpImport()
    scrape: Scrapes = ()
    sharding: Sharding = Sharding()
    webhook: Webhooks = ()
    recording: Recording = Recording()


def load(path: Path) -> CollectorConfig:
    """Raises Invalid, naming the file and each wrong key, when it cannot be read or is not as it should be."""
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise _invalid(path, f"has more than {BYTES_MAX} bytes")
        return CollectorConfig.model_validate(tomllib.loads(data.decode()))
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(path, f"is no TOML: {error}") from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        shown = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {_told(item)}" for item in found[:_ERRORS_SHOWN]]
        more = f" (and {len(found) - len(shown)} more)" if len(found) > len(shown) else ""
        raise _invalid(path, f"has wrong settings: {'; '.join(shown)}{more}") from error


def _told(error: ErrorDetails) -> str:
    """What is wrong and what to write, in the words of TOML where pydantic speaks of Python."""
    match error["type"]:
        case "extra_forbidden":
            return "there is no such setting here; take it away or correct its name (docs/collector.md has all)"
        case "missing":
            return "must be given"
        case "tuple_type" if len(error["loc"]) == 1:
            return f"there may be several; begin each with [[{error['loc'][0]}]]"
        case "tuple_type":
            return 'must be a list: ["…", "…"]'
        case "value_error":
            return str(error.get("ctx", {}).get("error", error["msg"]))
    return error["msg"]


def _invalid(path: Path, what: str) -> Invalid:
    return Invalid(f"the collector's configuration {path} {what}", Reason.BAD_FIELD, file=str(path))
