"""What stands between us and a server: proxies that answer with code 200 and no answer."""

import http.server
import json
import threading

import pytest
from PIL import Image

from teacher.server import ServerCaptioner

BASE = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
ANSWERS = {
    "overloaded": json.dumps({"error": {"message": "overloaded"}}),
    "choices=\\[\\]": json.dumps(BASE | {"choices": []}),
    "please log in": "<html>please log in</html>",
}


@pytest.mark.parametrize("told", ANSWERS)
def test_an_answer_without_a_choice_is_the_server_s_trouble_in_one_line(told):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/html")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            self.answer(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(ANSWERS[told])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        teacher = ServerCaptioner("m", perspectives={"a": "?"}, server=f"http://127.0.0.1:{server.server_port}/v1")
        with pytest.raises(ConnectionError, match=f"answers without a choice: .*{told}") as error:
            teacher.caption([Image.new("RGB", (50, 40))])
        server.shutdown()
    assert "\n" not in str(error.value)
