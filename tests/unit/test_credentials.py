"""Where registry credentials are found: containers-auth.json(5), docker's config.json, credential helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from dtrain.errors import AccessDenied, MalformedInput
from dtrain.transport.credentials import Credential, CredentialStore

SECRET = "s3cret-pa55"


def auth(username: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def helper(folder: Path, name: str, script: str) -> dict[str, str]:
    """Install docker-credential-NAME and return an environment whose PATH finds it."""
    program = write(folder / "bin" / f"docker-credential-{name}", f"#!/bin/sh\nserver=$(cat)\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin"}


def docker(folder: Path, value: object) -> dict[str, str]:
    write(folder / "docker" / "config.json", value)
    return {"DOCKER_CONFIG": str(folder / "docker")}


def user(environ: dict[str, str], place: str = "registry.example/ns/repo") -> str | None:
    found = CredentialStore(environ)(place)
    return None if found is None else found.username


def test_nothing_anywhere_is_anonymous(tmp_path: Path) -> None:
    assert user({"HOME": str(tmp_path)}) is None


def test_explicit_credential_wins_over_every_file(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {"registry.example": auth("file")}})
    store = CredentialStore(environ, explicit=Credential("given", "x"))
    assert store("registry.example/ns/repo") == Credential("given", "x")


def test_files_are_read_in_the_order_of_podman_then_docker(tmp_path: Path) -> None:
    files = {
        "first": tmp_path / "first.json",
        "second": tmp_path / "run" / "containers" / "auth.json",
        "third": tmp_path / "config" / "containers" / "auth.json",
        "fourth": tmp_path / "docker" / "config.json",
    }
    for name, path in files.items():
        write(path, {"auths": {"registry.example": auth(name)}})
    environ = {"REGISTRY_AUTH_FILE": str(files["first"]), "XDG_RUNTIME_DIR": str(tmp_path / "run"),
               "XDG_CONFIG_HOME": str(tmp_path / "config"), "DOCKER_CONFIG": str(tmp_path / "docker")}
    for name, path in files.items():
        assert user(environ) == name
        path.unlink()
    assert user(environ) is None


def test_home_is_the_default_place_of_dockers_file(tmp_path: Path) -> None:
    write(tmp_path / ".docker" / "config.json", {"auths": {"registry.example": auth("home")}})
    assert user({"HOME": str(tmp_path)}) == "home"


def test_password_may_hold_a_colon(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {"registry.example": auth("u", "a:b:c")}})
    assert CredentialStore(environ)("registry.example/r") == Credential("u", "a:b:c")


def test_most_specific_name_wins(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {
        "registry.example": auth("host"), "registry.example/ns": auth("ns"), "registry.example/ns/repo": auth("repo"),
    }})
    assert user(environ) == "repo"
    assert user(environ, "registry.example/ns/other") == "ns"
    assert user(environ, "registry.example/nsx/repo") == "host"
    assert user(environ, "registry.example:5000/ns/repo") is None


def test_key_with_scheme_and_path_of_old_docker_versions_is_found(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {"https://registry.example/v2/": auth("old")}})
    assert user(environ) == "old"


@pytest.mark.parametrize("place", ["docker.io/library/busybox", "index.docker.io/library/busybox"])
@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_is_found_under_each_of_its_names(tmp_path: Path, place: str, key: str) -> None:
    assert user(docker(tmp_path, {"auths": {key: auth("hub")}}), place) == "hub"


def test_identity_token_is_told_from_a_password(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {"registry.example": {**auth("u"), "identitytoken": SECRET}}})
    found = CredentialStore(environ)("registry.example/r")
    assert found is not None
    assert found.is_identity_token
    assert found.password == SECRET


def test_helper_of_the_host_is_asked_before_auths(tmp_path: Path) -> None:
    environ = helper(tmp_path, "box", """echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"x\\"}" """)
    environ |= docker(tmp_path, {"auths": {"registry.example": auth("file")},
                                 "credHelpers": {"registry.example": "box"}, "credsStore": "missing"})
    assert user(environ) == "registry.example"


def test_store_is_asked_for_hosts_without_an_entry(tmp_path: Path) -> None:
    environ = helper(tmp_path, "box", """echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"x\\"}" """)
    environ |= docker(tmp_path, {"auths": {"registry.example": {}, "other.example": auth("file")},
                                 "credsStore": "box"})
    assert user(environ) == "registry.example"
    assert user(environ, "other.example/r") == "file"


def test_store_that_knows_nothing_is_anonymous(tmp_path: Path) -> None:
    environ = helper(tmp_path, "box", "echo 'credentials not found in native keychain'; exit 1")
    assert user(environ | docker(tmp_path, {"credsStore": "box"})) is None


def test_missing_helper_is_named_d5(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"credHelpers": {"registry.example": "nosuch"}}) | {"PATH": str(tmp_path)}
    with pytest.raises(AccessDenied, match="docker-credential-nosuch, got no such program") as caught:
        user(environ)
    assert caught.value.hint is not None


def test_failing_helper_is_named_without_its_output_d5(tmp_path: Path) -> None:
    environ = helper(tmp_path, "box", f"echo {SECRET}; exit 3")
    with pytest.raises(AccessDenied, match="docker-credential-box, got exit status 3") as caught:
        user(environ | docker(tmp_path, {"credsStore": "box"}))
    assert SECRET not in str(caught.value)


def test_helper_that_prints_no_json_is_malformed(tmp_path: Path) -> None:
    environ = helper(tmp_path, "box", f"echo {SECRET}")
    with pytest.raises(MalformedInput, match="expected a JSON object") as caught:
        user(environ | docker(tmp_path, {"credsStore": "box"}))
    assert SECRET not in str(caught.value)


def test_helper_that_hangs_is_left_d5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtrain.transport.credentials.HELPER_TIMEOUT", 0.1)
    environ = helper(tmp_path, "box", "exec sleep 60")
    with pytest.raises(AccessDenied, match=r"docker-credential-box in 0\.1 s"):
        user(environ | docker(tmp_path, {"credsStore": "box"}))


@pytest.mark.parametrize("name", ["../evil", "a b", "", "-x/y"])
def test_helper_name_is_no_path(tmp_path: Path, name: str) -> None:
    environ = docker(tmp_path, {"credHelpers": {"registry.example": name}})
    if name:
        with pytest.raises(MalformedInput, match="plain name"):
            user(environ)
    else:
        assert user(environ) is None


@pytest.mark.parametrize("value", [
    "not json", {"auths": []}, {"auths": {"registry.example": SECRET}},
    {"auths": {"registry.example": {"auth": "%%%"}}}, {"auths": {"registry.example": {"auth": "bm9jb2xvbg=="}}},
])
def test_broken_file_is_refused_and_not_quoted(tmp_path: Path, value: object) -> None:
    with pytest.raises(MalformedInput) as caught:
        user(docker(tmp_path, value))
    assert SECRET not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_unreadable_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(AccessDenied, match="readable file"):
        user({"DOCKER_CONFIG": str(tmp_path)})


def test_no_repr_holds_a_secret(tmp_path: Path) -> None:
    environ = dict(os.environ, DTRAIN_PASSWORD=SECRET)
    credential = Credential("u", SECRET)
    assert SECRET not in repr(credential) + repr(CredentialStore(environ, explicit=credential))
