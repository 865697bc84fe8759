"""Clients of the router who bring an API key, and those who do not, over real HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from serving_plane import Alphabet, ServingPlane, replica_name, serving_plane
from terminal import Terminal

from switchgear.access import pki
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.tls import write_private
from switchgear.serve import api_keys, completions, load, router
from switchgear.serve.replica import ReplicaSettings, serving

OLD, NEW = "old-" + "o" * 40, "new-" + "n" * 40
BODY = {"model": "chat", "prompt": "a", "max_tokens": 3}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    write_private(tmp_path / "keys", f"{OLD}\n")
    return tmp_path / "keys"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def replica_of(plane: ServingPlane) -> AsyncIterator[None]:
    settings = ReplicaSettings(model="chat", replica=replica_name(1), autoscaler=plane.address, grace_s=1)
    async with serving(Alphabet, settings):
        await plane.publish(await plane.ready(1))
        yield


async def test_only_a_client_with_a_key_is_served_and_keys_change_without_a_restart(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "FRESH_S", 0.0)
    registry = CollectorRegistry()
    async with serving_plane() as plane:
        settings = router.RouterSettings(autoscaler=plane.address, listen="127.0.0.1:0", key_file=key_file, grace_s=1)
        async with (
            router.serve(settings, registry) as address,
            replica_of(plane),
            httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as client,
        ):

            async def ask(headers: dict[str, str], **fields: object) -> httpx.Response:
                return await client.post(completions.PATH, json={**BODY, **fields}, headers=headers)

            assert (await ask(bearer(OLD))).json()["choices"][0]["text"] == "bcd"
            for refused in (await ask({}), await ask(bearer(NEW)), await ask({}, prompt="a" * 900_000)):
                error = refused.json()["error"]
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert (error["type"], error["code"]) == ("invalid_request_error", "UNAUTHENTICATED")
                assert "Authorization: Bearer KEY" in error["message"]
            assert registry.get_sample_value("switchgear_router_requests_total", {"service": "", "code": "401"}) == 3

            write_private(key_file, f"{OLD}\n{NEW}\n")
            assert [(await ask(bearer(key))).status_code for key in (OLD, NEW)] == [200, 200]
            write_private(key_file, f"{NEW}\n")
            assert [(await ask(bearer(key))).status_code for key in (OLD, NEW)] == [401, 200]
            key_file.unlink()
            assert [(await ask(bearer(key))).status_code for key in (OLD, NEW)] == [401, 200]

            assert (await client.get("/health")).status_code == 200
            assert [(await client.get("/metrics", headers=sent)).status_code for sent in ({}, bearer(NEW))] == [
                404,
                404,
            ]


async def test_without_a_key_file_a_client_on_loopback_needs_none_and_one_that_it_sends_is_not_looked_at() -> None:
    async with serving_plane() as plane:
        settings = router.RouterSettings(autoscaler=plane.address, listen="127.0.0.1:0", grace_s=1)
        async with router.serve(settings, CollectorRegistry()) as address, replica_of(plane):
            for headers in ({}, bearer("sk-anything")):
                answer = await asyncio.to_thread(
                    httpx.post, f"http://{address}{completions.PATH}", json=BODY, headers=headers, trust_env=False
                )
                assert answer.status_code == 200


async def test_beyond_loopback_neither_keys_nor_tls_may_be_missing(tmp_path: Path, key_file: Path) -> None:
    pki.create(tmp_path / "pki", [], time.time_ns())
    tls = pki.Pki(tmp_path / "pki").tls_files
    without = router.RouterSettings(autoscaler="127.0.0.1:9", listen="0.0.0.0:0")
    for settings, remedy in (
        (without, "--router-key-file"),
        (replace(without, listen_tls=tls), "--api-key-file"),
        (replace(without, key_file=key_file), "switchgear init"),
    ):
        with pytest.raises(FailedPrecondition, match=remedy) as caught:
            async with router.serve(settings, CollectorRegistry()):
                pass
        assert caught.value.reason is Reason.INSECURE_BIND


async def test_the_load_generator_brings_a_key_over_tls(tmp_path: Path, key_file: Path) -> None:
    pki.create(tmp_path / "pki", [], time.time_ns())
    ours = pki.Pki(tmp_path / "pki")
    async with serving_plane() as plane:
        # Replicas are plain here, so the router's own files are for its clients alone.
        settings = router.RouterSettings(
            autoscaler=plane.address, listen="127.0.0.1:0", listen_tls=ours.tls_files, key_file=key_file, grace_s=1
        )
        async with router.serve(settings, CollectorRegistry()) as address, replica_of(plane):
            asked = load.LoadSettings(
                url=f"https://{address}", model="chat", phases=load.profile("0.5x20"), tokens=(3,), ca=ours.ca
            )
            refused = await load.run(asked)
            assert refused.outcomes
            assert all(failure.startswith("401 ") for failure in refused.failures())
            good = await load.run(replace(asked, api_key=OLD))
            assert good.failures() == {}
            assert OLD not in repr(replace(asked, api_key=OLD))


def test_the_command_refuses_an_address_without_keys_and_keys_that_all_may_read(tmp_path: Path, key_file: Path) -> None:
    terminal = Terminal(tmp_path)
    try:
        refused = terminal.run("router", "--listen", "0.0.0.0:0")
        assert (refused.returncode, "--api-key-file" in refused.stderr) == (18, True), refused.stderr
        key_file.chmod(0o644)
        refused = terminal.run("router", "--listen", "127.0.0.1:0", "--api-key-file", str(key_file))
        assert (refused.returncode, f"chmod 600 {key_file}" in refused.stderr) == (22, True), refused.stderr
    finally:
        terminal.close()
