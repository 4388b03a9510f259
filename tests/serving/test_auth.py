"""Keys are known by their hashes, admins apart, and each key has its rate."""

import asyncio
import hashlib

import pytest

from hf_clip_domain.cli.main import main
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.auth import new_key, read_keys
from hf_clip_domain.serving.settings import Settings


@pytest.fixture
def keys(tmp_path):
    user, line = new_key("user")
    admin, admin_line = new_key("admin")
    (tmp_path / "keys").write_text(f"# clients\n{line}\n")
    (tmp_path / "admins").write_text(f"{admin_line}\n")
    return user, admin, {"api_keys": str(tmp_path / "keys"), "admin_keys": str(tmp_path / "admins")}


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_a_key_opens_what_it_may(folder, serve, keys):
    user, admin, files = keys

    async def ask():
        async with serve(folder, **files) as (client, _):
            for path in ("/healthz", "/readyz", "/"):
                assert (await client.get(path)).status_code == 200
            for path in ("/stats", "/metrics", "/openapi.json", "/nothing"):
                refused = await client.get(path)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            body = {"input": "a"}
            for headers, status in (({}, 401), (bearer("clip-guess"), 401), (bearer(user), 200), (bearer(admin), 200)):
                assert (await client.post("/v1/embeddings", json=body, headers=headers)).status_code == status
            assert (await client.post("/v1/embeddings", json=body, headers={"x-api-key": user})).status_code == 200
            for path in ("/admin/reload", "/admin/rollback", "/gallery", "/gallery/remove"):
                assert (await client.post(path, json={}, headers=bearer(user))).status_code == 403
                assert (await client.post(path, json={}, headers=bearer(admin))).status_code not in (401, 403)

    asyncio.run(ask())


def test_with_keys_and_no_admin_keys_nobody_administrates(folder, serve, keys):
    async def ask():
        async with serve(folder, api_keys=keys[2]["api_keys"]) as (client, _):
            assert (await client.post("/admin/reload", json={}, headers=bearer(keys[0]))).status_code == 403

    asyncio.run(ask())


def test_a_key_has_its_rate_and_guessing_too(folder, serve, keys):
    user, admin, files = keys

    async def ask():
        async with serve(folder, **files, rate_limit=0.5, rate_burst=3) as (client, _):
            statuses = [(await client.get("/stats", headers=bearer(user))) for _ in range(5)]
            assert [answer.status_code for answer in statuses] == [200, 200, 200, 429, 429]
            assert 1 <= int(statuses[3].headers["retry-after"]) <= 2
            assert (await client.get("/stats", headers=bearer(admin))).status_code == 200
            guesses = [(await client.get("/stats", headers=bearer(f"clip-{n}"))).status_code for n in range(5)]
            assert guesses == [401, 401, 401, 429, 429]
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(ask())


def test_files_of_keys_hold_hashes_only(tmp_path, keys):
    user, _, files = keys
    assert read_keys(files["api_keys"]) == {hashlib.sha256(user.encode()).hexdigest(): "user"}
    assert user not in (tmp_path / "keys").read_text()
    (tmp_path / "clear").write_text(user)
    with pytest.raises(ClipDomainError, match="line 1") as caught:
        read_keys(str(tmp_path / "clear"))
    assert user not in str(caught.value)
    (tmp_path / "none").write_text("\n")
    for name in ("none", "missing"):
        with pytest.raises(ClipDomainError):
            read_keys(str(tmp_path / name))


def test_strangers_are_not_answered_without_keys(capsys, keys):
    Settings(host="127.0.0.1").check_exposure()
    Settings(host="0.0.0.0", without_keys=True).check_exposure()
    Settings(host="0.0.0.0", **keys[2]).check_exposure()
    assert main(["serve", "starter", "--host", "0.0.0.0"]) == 1
    assert "--api_keys" in capsys.readouterr().err
    assert main(["serve"]) == 1 and "MODEL" in capsys.readouterr().err
    assert main(["serve", "no/such/folder/at/all"]) == 1


def test_the_command_makes_a_key(capsys, tmp_path):
    assert main(["serve", "--new_key", "radiology"]) == 0
    key, line = (text.split()[-1] for text in capsys.readouterr().out.splitlines())
    (tmp_path / "keys").write_text(line)
    assert read_keys(str(tmp_path / "keys")) == {hashlib.sha256(key.encode()).hexdigest(): "radiology"}
    assert main(["serve", "--new_key", "a b"]) == 1
