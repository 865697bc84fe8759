"""Where this machine keeps Switchgear's state, and how a command finds the control plane that runs here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from switchgear.core.tls import TlsFiles

DEFAULT_GRPC = "127.0.0.1:7070"
DEFAULT_HTTP = "127.0.0.1:7080"
DEFAULT_MACHINES = "127.0.0.1:7076"
#: `init`, `up` and `serve` must mean the same database, so all of them read it.
DATABASE_URL_VARIABLE = "SWITCHGEAR_DATABASE_URL"
#: In the state directory: this user's token.
TOKEN_FILE = "token"  # noqa: S105 - where it is, not what


def default_state_dir() -> Path:
    """`$SWITCHGEAR_STATE_DIR`, or `switchgear` in the user's state folder (XDG Base Directory)."""
    if chosen := os.environ.get("SWITCHGEAR_STATE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "switchgear"


@dataclass(frozen=True, slots=True)
class Running:
    """What `switchgear up` writes when it serves."""

    pid: int
    grpc: str
    http: str
    router: str = ""


def write_running(state_dir: Path, running: Running) -> None:
    temporary = state_dir / "endpoints.json.tmp"
    temporary.write_text(json.dumps(asdict(running)) + "\n")
    temporary.replace(state_dir / "endpoints.json")


def read_running(state_dir: Path) -> Running | None:
    """The endpoints of the newest `up` on this state directory, alive or not; None when there is none."""
    try:
        return Running(**json.loads((state_dir / "endpoints.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def server_address(chosen: str | None) -> str:
    """The gRPC address to speak to: the one asked for, `$SWITCHGEAR_SERVER`, the local `up`, or the default port."""
    if address := chosen or os.environ.get("SWITCHGEAR_SERVER"):
        return address
    running = read_running(default_state_dir())
    return running.grpc if running else DEFAULT_GRPC


@dataclass(frozen=True, slots=True)
class Credentials:
    """How this user's commands prove themselves. tls: whom they believe; None: the control plane has no TLS. token: empty: none."""

    tls: TlsFiles | None
    token: str


def credentials() -> Credentials:
    """The CA's certificate is `$SWITCHGEAR_CA_FILE`, or `ca.crt` in the state directory or its `pki`; without one there is no TLS.

    The token is `$SWITCHGEAR_TOKEN`, what is in the file `$SWITCHGEAR_TOKEN_FILE`, or in `token` in the state directory.
    Raises OSError when the file of a token is there and cannot be read.
    """
    state_dir = default_state_dir()
    named = os.environ.get("SWITCHGEAR_CA_FILE")
    places = [Path(named)] if named else [state_dir / "ca.crt", state_dir / "pki" / "ca.crt"]
    ca = next((path for path in places if named or path.exists()), None)
    if ca is None:
        return Credentials(None, "")
    return Credentials(TlsFiles(ca), os.environ.get("SWITCHGEAR_TOKEN") or _token(state_dir))


def _token(state_dir: Path) -> str:
    named = os.environ.get("SWITCHGEAR_TOKEN_FILE")
    path = Path(named) if named else state_dir / TOKEN_FILE
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if not named:
            return ""
        raise
