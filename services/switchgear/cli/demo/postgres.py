"""A PostgreSQL of the demo's own, on a Unix socket in its folder: what services that run apart share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from switchgear.core.errors import FailedPrecondition, Reason


def binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`: Debian's newest, else what the PATH has."""
    newest_first = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True
    )
    found = [*newest_first, *map(Path, filter(None, [shutil.which("initdb")]))]
    return next((path.parent for path in found if (path.parent / "pg_ctl").exists()), None)


class Postgres:
    """Starts with `start`, ends with `close`, which removes its data.

    The folder is of its own under the system's temporary folder: as root it belongs to the user `postgres`, since PostgreSQL
    refuses to run as root, and the demo's folder is closed to that user.
    """

    def __init__(self) -> None:
        found = binaries()
        if found is None:
            raise FailedPrecondition(
                "services that run apart share a PostgreSQL, and none is installed here; install the package postgresql, "
                "or name a running one with --database-url postgresql+asyncpg://…",
                Reason.DATABASE_UNUSABLE,
            )
        self._binaries = found
        self._folder = Path(tempfile.mkdtemp(prefix="switchgear-demo-pg-"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            self._as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
            shutil.chown(self._folder, "postgres", "postgres")

    @property
    def folder(self) -> Path:
        """Where its socket is."""
        return self._folder

    def start(self, *options: str) -> str:
        """The URL of an empty database. options: settings as `-c NAME=VALUE`.

        Raises FailedPrecondition (DATABASE_UNUSABLE) when it does not start.
        """
        self._control("-o", "-A trust -U postgres -E UTF8 --locale=C.UTF-8 --no-sync", "initdb")
        given = " ".join((f"-k {self._folder} -c listen_addresses=", *options))
        self._control("-w", "-l", str(self._folder / "log"), "-o", given, "start")
        return f"postgresql+asyncpg://postgres@/postgres?host={self._folder}"

    def close(self) -> None:
        subprocess.run(
            [
                *self._as_user,
                str(self._binaries / "pg_ctl"),
                "-D",
                str(self._folder / "data"),
                "-m",
                "immediate",
                "stop",
            ],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _control(self, *arguments: str) -> None:
        # Output to nowhere: a pipe would be inherited by the server and never close.
        done = subprocess.run(
            [*self._as_user, str(self._binaries / "pg_ctl"), "-D", str(self._folder / "data"), *arguments],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        if done.returncode:
            raise FailedPrecondition(
                f"PostgreSQL did not start ({arguments[-1]} ended with {done.returncode}); its log is {self._folder / 'log'}",
                Reason.DATABASE_UNUSABLE,
            )
