"""A real server (`transformers serve`) as teacher: the same captions, and nothing lost or made up when it goes away."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from processes import free_port, transformers_serve
from random_llava import random_pictures
from toy_project import Project, toy_checkpoint

from pipeline import caption as stage
from pipeline import embed
from pipeline.captioning import run as caption_run
from teacher import server as teacher_server
from teacher.square import Square
from teacher.teacher import CaptionFailure


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(port):
    with transformers_serve(toy_checkpoint(), port) as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teacher_server, "REPEATS", 1)
    return Project(tmp_path, n_images=10)


@pytest.fixture
def asked(port) -> list[str]:
    words = ("teacher=server", f"server=http://127.0.0.1:{port}/v1", "image_side=32")
    return [part for word in words for part in ("--set", f"caption.{word}")]


def test_the_same_captions_and_another_fingerprint(server, project, asked, capsys):
    local = ["--set", "caption.quantization=none", "--set", "caption.dtype=float32"]
    stage.main(local)
    here = project.captions()
    (project.root / "store").rename(project.root / "local")
    stage.main(asked)
    assert "10 new of 10 images" in capsys.readouterr().out
    assert project.captions() == here, "text, number of tokens and finish reason"
    there, local = ({path.name for path in (project.root / name).iterdir()} for name in ("store", "local"))
    assert there & local == {"runs"}, "a store is shared"
    stage.main(asked)
    assert "0 new of 10 images" in capsys.readouterr().out
    embed.main(asked)
    manifest = (project.root / "release/manifest.json").read_text()
    assert '"server"' in manifest and str(toy_checkpoint().parent) not in manifest, "paths stay here"


def test_what_cannot_work_is_said_before_anything_is_asked(server, project, asked):
    with pytest.raises(SystemExit, match="does not serve 'nobody' but .*toy-llava"):
        stage.main([*asked, "--set", "caption.model=nobody"])
    with pytest.raises(SystemExit, match=r"teacher server needs its address: caption\.server"):
        stage.main(["--set", "caption.teacher=server"])
    with pytest.raises(SystemExit, match="go with caption.teacher: server"):
        stage.main(["--set", "caption.server=http://127.0.0.1:1/v1"])
    assert not project.store_rows()


def test_a_server_that_is_killed_leaves_what_is_finished_and_no_error_rows(server, port, project, asked, monkeypatch):
    load = caption_run.load_captioner

    def fragile(config):
        captioner = load(config)
        answer, calls = captioner.caption, []

        def killed_at_the_third_batch(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                server.kill()
            return answer(*arguments)

        captioner.caption = killed_at_the_third_batch
        return captioner

    monkeypatch.setattr(caption_run, "load_captioner", fragile)
    with pytest.raises(SystemExit, match=f"caption: http://127.0.0.1:{port}/v1: APIConnectionError") as error:
        stage.main(asked)
    assert "\n" not in str(error.value)
    finished = project.captions()
    assert len(finished) == 8 * 2 and {row[3] for row in finished.values()} <= {"ok", "empty"}
    monkeypatch.undo()
    monkeypatch.chdir(project.root)
    with pytest.raises(SystemExit, match="lists no models: APIConnectionError"):
        stage.main(asked)
    server.wait()
    with transformers_serve(toy_checkpoint(), port):
        stage.main(asked)
    assert len(project.captions()) == 10 * 2 and project.captions().items() >= finished.items()


class Refusing(BaseHTTPRequestHandler):
    """Refuses what `codes` names for the n-th request; a stand-in, since no server refuses images on demand."""

    codes: list[int] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._say(200, b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = b'{"choices": [{"message": {"content": " fine "}, "finish_reason": "stop"}]}'
        code = self.codes.pop(0) if self.codes else 200
        self._say(code, said if code == 200 else b'{"error": "no such picture"}')

    def _say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


def test_only_a_refused_picture_is_the_pictures_fault(monkeypatch):
    monkeypatch.setattr(teacher_server, "REPEATS", 1)
    handler = type("Handler", (Refusing,), {"codes": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/v1"
        teacher = teacher_server.ServerCaptioner("m", perspectives={"q": "?"}, server=url, batch_size=1)
        picture = Square(8)(random_pictures(1)[0])
        handler.codes[:] = [503]  # busy: asked again
        assert teacher.caption([picture])[0]["q"].text == "fine"
        handler.codes[:] = [400]
        first, second = teacher.caption([picture, picture])
        assert isinstance(first, CaptionFailure) and "no such picture" in first.reason and second["q"].text == "fine"
        for codes in ([400], [401], [404], [500, 500]):
            handler.codes[:] = codes
            with pytest.raises(ConnectionError, match="no such picture"):
                teacher.caption([picture])
        http.shutdown()
