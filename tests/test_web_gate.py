"""Access to the page: hosts, origins, sessions, tokens, the password, and the headers of answers."""

import time

import httpx
import pytest
from starlette.datastructures import Headers

from options.webui import parse_webui
from runs.secret import SECRET_FILE, read_secret
from serving.errors import ApiError
from tests.web_server import PASSWORD, open_session, page_server
from web import gate
from web.gate import Access, host_of

LET_THROUGH = 405  # of POST to a path where only files are


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page without a password."""
    with page_server(tmp_path_factory.mktemp("root")) as page:
        yield page


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A page with a password, which also answers to a name."""
    root = tmp_path_factory.mktemp("locked")
    with page_server(root, "--allowed_hosts", "glm.example.org", password=PASSWORD) as page:
        yield page


@pytest.mark.parametrize("path", ["/", "/app.js", "/style.css", "/api/start", "/api/browse?path=/etc", "/nowhere"])
def test_every_answer_has_the_headers(page, path):
    headers = page.client.get(path).headers
    assert {name: headers[name] for name in gate.HEADERS} == gate.HEADERS
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "127.0.0.1:80", "[::1]:7860", "192.168.1.5", "LOCALHOST"]
)
def test_hosts_that_no_other_site_can_name(page, host):
    assert page.client.get("/api/start", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com:7860", "", "[::1"])
def test_other_hosts_are_refused(page, host):
    assert page.client.get("/api/start", headers={"Host": host}).status_code == 403


def test_a_name_of_the_command_line(locked):
    assert locked.client.get("/api/start", headers={"Host": "glm.example.org"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, LET_THROUGH),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.com"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://[broken"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://glm.example.org"}, LET_THROUGH),
        ({}, LET_THROUGH),
    ],
)
def test_requests_of_other_sites(page, headers, status):
    assert page.client.post("/api/nothing", json={}, headers=headers).status_code == status


def test_the_origin_of_a_named_host(locked):
    headers = {"Origin": "https://glm.example.org"}
    assert locked.client.post("/api/nothing", json={}, headers=headers).status_code == LET_THROUGH


def test_a_link_from_another_site_opens_the_page(page):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert page.client.get("/", headers=headers).status_code == 200
    headers["Sec-Fetch-Dest"] = "iframe"
    assert page.client.get("/", headers=headers).status_code == 403


def test_what_changes_something_needs_the_token(page):
    def status(token):
        return page.client.post("/api/nothing", json={}, headers={"X-CSRF-Token": token}).status_code

    token = page.client.headers["X-CSRF-Token"]
    assert [status(one) for one in (token, "", token[:-1], "0" * 64)] == [LET_THROUGH, 403, 403, 403]
    other = open_session(page.url)
    assert status(other.headers["X-CSRF-Token"]) == 403  # of another session
    assert httpx.post(f"{page.url}/api/nothing", json={}).status_code == 403  # no session


def test_without_the_password_nothing_is_told(locked):
    client = httpx.Client(base_url=locked.url)
    assert client.get("/").status_code == 200 and "set-cookie" not in client.get("/").headers
    for path in ("/api/start", "/api/browse", "/v1/models"):
        assert client.get(path).status_code == 401
    assert client.post("/api/nothing", json={}).status_code == 401


def test_a_bearer_needs_no_token(locked):
    headers = {"Authorization": f"Bearer {PASSWORD}"}
    assert httpx.get(f"{locked.url}/api/browse", headers=headers).status_code == 200
    assert httpx.post(f"{locked.url}/api/nothing", json={}, headers=headers).status_code == LET_THROUGH


def test_a_bearer_in_chinese():
    headers = Headers(raw=[(b"authorization", "Bearer 密码".encode())])
    assert Access(b"s" * 32, "密码").is_bearer(headers)
    with pytest.raises(ApiError):
        Access(b"s" * 32, "密").is_bearer(headers)


@pytest.mark.parametrize("change", ["x{}", "{}x", "9{}", ".", "", "{}.{}", "é"])
def test_forged_sessions(locked, change):
    session = next(iter(locked.client.cookies.jar))
    cookie = f"{session.name}={change.replace('{}', session.value)}".encode()
    assert httpx.get(f"{locked.url}/api/start", headers={b"Cookie": cookie}).status_code == 401


def test_the_cookie_is_for_this_site_and_not_for_scripts(locked):
    answer = httpx.post(f"{locked.url}/login", json={"password": PASSWORD}, headers={"X-Forwarded-Proto": "https"})
    words = {word.strip().partition("=")[0] for word in answer.headers["set-cookie"].split(";")}
    assert {"HttpOnly", "SameSite", "Secure", "Max-Age"} <= words and "Domain" not in words
    assert "SameSite=Strict" in answer.headers["set-cookie"]


def test_wrong_passwords_have_to_wait(monkeypatch):
    monkeypatch.setattr(gate, "FAILURE_SECONDS", 0.5)
    access = Access(b"s" * 32, "right")
    for _ in range(gate.FAILURES):
        with pytest.raises(ApiError) as error:
            access.check_password("wrong")
        assert error.value.status == 401
    with pytest.raises(ApiError) as error:
        access.check_password("right")
    assert error.value.status == 429 and error.value.headers["retry-after"] == "1"
    time.sleep(0.5)
    access.check_password("right")


def test_sessions_survive_a_restart_but_no_new_password(tmp_path):
    secret = read_secret(tmp_path)
    session = Access(secret, "one").new_session()
    assert read_secret(tmp_path) == secret
    assert Access(secret, "one").is_session(session)
    assert not Access(secret, "two").is_session(session)
    assert not Access(secret, None).is_session(session)
    assert (tmp_path / SECRET_FILE).stat().st_mode & 0o077 == 0


def test_an_old_session_ends(monkeypatch):
    access = Access(b"s" * 32, None)
    session = access.new_session()
    now = gate.time.time()
    monkeypatch.setattr(gate.time, "time", lambda: now + gate.SESSION_SECONDS + 1)
    assert not access.is_session(session)


def test_a_secret_that_cannot_be_kept(tmp_path):
    (tmp_path / ".webui").write_text("a file")
    first, second = read_secret(tmp_path), read_secret(tmp_path)
    assert len(first) == 32 and first != second
    broken = tmp_path / "broken"
    (broken / ".webui").mkdir(parents=True)
    (broken / SECRET_FILE).write_bytes(b"")
    assert len(read_secret(broken)) == 32


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines use the page"),
        (["--host", "example.org"], "--host example.org lets other machines use the page"),
        (["--root", "/nowhere"], "--root /nowhere is not a directory"),
        (["--password", ""], "--password is empty"),
        (["--port", "70000"], "--port 70000 is out of bounds"),
    ],
)
def test_what_is_refused_before_it_listens(words, problem, monkeypatch):
    monkeypatch.delenv("CHATGLM_PASSWORD", raising=False)
    problems = parse_webui(words)[1]
    assert len(problems) == 1 and problems[0].startswith(problem)


def test_the_password_of_the_environment(monkeypatch):
    monkeypatch.setenv("CHATGLM_PASSWORD", "secret")
    options, problems = parse_webui(["--host", "0.0.0.0"])
    assert problems == [] and options.password == "secret"


def test_local_hosts_need_no_password(monkeypatch):
    monkeypatch.delenv("CHATGLM_PASSWORD", raising=False)
    assert [parse_webui(["--host", host])[1] for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [[]] * 4


def test_host_of():
    places = ["a.b", "A.b:80", "[::1]:80", "[::1]", ""]
    assert [host_of(place) for place in places] == ["a.b", "a.b", "[::1]", "[::1]", ""]
