"""The REST client against a peer that misbehaves: a scripted HTTPS server."""

import threading

import pytest

from dm.common.client import RestClient
from dm.common.errors import AuthenticationError, CommunicationError, DmException, ObjectNotFound, ServiceUnavailable
from dm.common.tls import server_context
from tests.service.client_fixtures import DATA, TAG, cut_step, data_step, json_step, login_step, serving


@pytest.fixture(scope="module")
def context(certificates):
    return server_context(certificates / "server.pem", certificates / "server.key")


@pytest.fixture
def peer(context):
    with serving(context) as started:
        yield started


@pytest.fixture
def client(peer, certificates):
    url = f"https://localhost:{peer.server_port}"
    with RestClient(url, "d123456", "secret", ca_file=certificates / "ca.pem", timeout=10) as made:
        yield made


def test_an_error_with_http_200(peer, client):
    peer.script = [json_step(200, '{"errorCode": 14, "errorMessage": "Job x does not exist."}')]
    with pytest.raises(ObjectNotFound, match="Job x does not exist"):
        client.get("/x")


def test_connections_are_kept(peer, client):
    peer.script = [json_step(200, "[]")] * 5
    for _ in range(5):
        client.get("/x")
    assert peer.connections == 1


def test_a_get_on_a_connection_closed_meanwhile_is_repeated(peer, client):
    peer.script = [json_step(200, "[]"), cut_step, json_step(200, "[1]")]
    client.get("/x")
    assert client.get("/x") == [1]


def test_a_get_that_fails_twice_is_an_error(peer, client):
    peer.script = [cut_step, cut_step]
    with pytest.raises(CommunicationError, match="No answer from https://localhost"):
        client.get("/x")


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_what_may_have_happened_is_not_repeated(peer, client, method):
    peer.script = [cut_step, json_step(200, "[]")]
    with pytest.raises(CommunicationError):
        getattr(client, method)("/x")
    assert len(peer.requests) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_reaches_no_service_is_asked_again_for_what_may_be_repeated(peer, client, status):
    gone = json_step(status, "<html>Bad Gateway</html>", **{"Content-Type": "text/html"})
    peer.script = [gone, json_step(401, '{"errorCode": 6, "errorMessage": "Log in."}'), gone, login_step, gone,
                   json_step(200, "[1]")]  # fmt: skip
    assert client.get("/x") == [1]
    peer.script = [gone, json_step(200, "[1]")]
    with pytest.raises(DmException, match=f"HTTP {status}"):
        client.post("/x")


def test_a_service_that_is_busy_is_not_asked_again_by_itself(peer, client):
    busy = json_step(503, '{"errorCode": 11, "errorMessage": "Busy."}', **{"Dm-Status-Code": "11"})
    peer.script = [busy, json_step(200, "[1]")]
    with pytest.raises(DmException, match="Busy"):
        client.get("/x")
    assert len(peer.requests) == 1


def test_a_refused_login_is_not_repeated(peer, client):
    refusal = json_step(401, '{"errorCode": 6, "errorMessage": "Incorrect username or password."}')
    peer.script = [json_step(401, '{"errorCode": 12, "errorMessage": "Log in."}'), refusal]
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        client.get("/x")
    assert [path for _, path, _, _ in peer.requests] == ["/dm/x", "/dm/login"]


def test_threads_do_not_repeat_a_refused_login(peer, client):
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def ask(handler):
        waiting.release()
        assert go_on.wait(20)
        handler.reply(401, b'{"errorCode": 6, "errorMessage": "Log in."}')

    refusal = json_step(401, '{"errorCode": 6, "errorMessage": "Incorrect username or password."}')
    peer.script = [ask] * 6 + [refusal] * 6
    said = []

    def work():
        try:
            client.get("/x")
        except AuthenticationError as error:
            said.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=20)
    go_on.set()
    for thread in threads:
        thread.join()
    assert said == ["Incorrect username or password."] * 6
    assert [path for _, path, _, _ in peer.requests].count("/dm/login") == 1


def test_a_service_that_never_accepts_its_own_session_ends_the_matter(peer, client):
    refusal = json_step(401, '{"errorCode": 12, "errorMessage": "Log in."}')
    peer.script = [refusal, login_step, refusal]
    with pytest.raises(Exception, match="Log in"):
        client.get("/x")
    assert len(peer.requests) == 3


def test_the_login_is_a_form_and_the_cookie_plain(peer, client):
    peer.script = [json_step(401, ""), login_step, json_step(200, "{}")]
    client.get("/x", headers={"Dm-Grant": "1.x"})
    method, path, headers, body = peer.requests[1]
    assert (method, path, body) == ("POST", "/dm/login", b"username=d123456&password=secret")
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert peer.requests[2][2]["Cookie"] == "SESSIONID=abc"
    assert peer.requests[2][2]["Dm-Grant"] == "1.x"
    assert "Dm-Grant" not in headers


def test_a_login_without_a_cookie_is_an_error(peer, client):
    peer.script = [json_step(401, ""), json_step(200, "{}")]
    with pytest.raises(CommunicationError, match="brought no session"):
        client.get("/x")


def test_redirections_are_not_followed(peer, client):
    peer.script = [json_step(302, "", Location="https://elsewhere/")]
    with pytest.raises(CommunicationError, match="HTTP 302"):
        client.get("/x")


def test_a_proxy_s_error_page(peer, client):
    peer.script = [json_step(503, "<html>upstream</html>", **{"Content-Type": "text/html"})] * 4
    with pytest.raises(ServiceUnavailable, match="HTTP 503"):
        client.get("/x")


def test_a_slow_answer_is_named_with_its_limit(peer, client):
    release = threading.Event()
    peer.script = [lambda handler: release.wait(20)]
    with pytest.raises(CommunicationError, match=r"within 0\.2 s: timed out"):
        client.post("/x", timeout=0.2)
    release.set()


# --- downloads -----------------------------------------------------------------------------------------------


def test_a_broken_download_is_taken_up_where_it_broke(peer, client, tmp_path):
    peer.script = [data_step(300_000), data_step(0), data_step(400_000), data_step()]
    target = client.download("/f", tmp_path / "f", size=len(DATA))
    assert target.read_bytes() == DATA
    ranges = [headers.get("Range") for _, _, headers, _ in peer.requests]
    assert ranges == [None, "bytes=300000-", "bytes=300000-", "bytes=700000-"]
    assert peer.requests[1][2]["If-Range"] == TAG
    assert peer.requests[1][2]["Accept-Encoding"] == "identity"


def test_a_changed_file_is_downloaded_anew(peer, client, tmp_path):
    peer.script = [data_step(300_000), data_step(tag='"v2"', data=DATA[::-1])]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_server_without_ranges_starts_over(peer, client, tmp_path):
    peer.script = [data_step(300_000), data_step(ranges=False)]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA


def test_without_progress_it_gives_up_and_keeps_what_it_has(peer, client, tmp_path):
    peer.script = [data_step(300_000), data_step(0), data_step(0), data_step(0)]
    with pytest.raises(CommunicationError):
        client.download("/f", tmp_path / "f")
    (part,) = tmp_path.iterdir()
    assert part.name.startswith(".")
    assert part.read_bytes() == DATA[:300_000]
    peer.script = [data_step()]
    client.download("/f", tmp_path / "f")
    assert peer.requests[-1][2]["Range"] == "bytes=300000-"


def test_weak_tags_are_not_resumed(peer, client, tmp_path):
    peer.script = [data_step(300_000, tag='W/"v1"')]
    with pytest.raises(CommunicationError):
        client.download("/f", tmp_path / "f")
    peer.script = [data_step()]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA
    assert "Range" not in peer.requests[-1][2]
    assert [path.name for path in tmp_path.iterdir()] == ["f"], "what cannot be resumed is not left behind"


def test_another_range_than_asked_for_is_refused(peer, client, tmp_path):
    def odd(handler):
        headers = {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}", "ETag": TAG}
        handler.reply(206, DATA[5:], headers)

    peer.script = [data_step(300_000), odd, data_step()]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA


def test_an_error_instead_of_a_file(peer, client, tmp_path):
    text = '{"errorCode": 14, "errorMessage": "File f does not exist."}'
    peer.script = [json_step(200, text, **{"Dm-Status-Code": "14"})]
    with pytest.raises(ObjectNotFound, match="File f does not exist"):
        client.download("/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_download_logs_in_too(peer, client, tmp_path):
    peer.script = [json_step(401, '{"errorCode": 6, "errorMessage": "Log in."}'), login_step, data_step()]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA


def test_part_files_of_others_are_not_taken_over(peer, client, tmp_path):
    peer.script = [data_step(300_000)] + [data_step(0)] * 3
    with pytest.raises(CommunicationError):
        client.download("/f", tmp_path / "f")
    (part,) = tmp_path.iterdir()
    elsewhere = tmp_path / "elsewhere"
    part.rename(elsewhere)
    part.symlink_to(elsewhere)
    peer.script = [data_step()]
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA
    assert elsewhere.read_bytes() == DATA[:300_000], "a planted link is not written through"


def test_two_downloads_of_the_same_file_do_not_mix(peer, client, tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def hold(done, total):
        inside.set()
        assert go_on.wait(20)

    peer.script = [data_step(), data_step()]
    first = threading.Thread(target=client.download, args=("/f", tmp_path / "f"), kwargs={"progress": hold})
    first.start()
    assert inside.wait(20)
    assert client.download("/f", tmp_path / "f").read_bytes() == DATA
    go_on.set()
    first.join()
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
