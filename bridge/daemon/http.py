"""`/metrics`, `/healthz` and `/readyz` on one local port.

A thread of its own: it answers while the event loop is busy, and tells when the loop no longer turns.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Check = Callable[[], list[str]]
"""What is wrong; nothing if all is well."""


_LOOPBACK = ("127.", "localhost", "[::1]")


def heard_at(address: str, pod_ip: str) -> str:
    """Where to listen, so that probes are heard: loopback in a pod means the pod's own address. Pure.

    The kubelet asks from outside. A daemon that listened on the pod's loopback would be restarted for ever.
    """
    host, _, port = address.rpartition(":")
    if not pod_ip or not host.startswith(_LOOPBACK):
        return address
    return f"[{pod_ip}]:{port}" if ":" in pod_ip else f"{pod_ip}:{port}"


class HttpEndpoint:
    """Serves until stopped.

    `address` is `host:port`; port 0 takes a free one, see `port`.
    """

    def __init__(self, address: str, registry: CollectorRegistry, health: Check, ready: Check) -> None:
        """Bind. Raises OSError if the address is taken."""
        host, _, port = address.rpartition(":")
        checks = {"/healthz": health, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            """Answers GET."""

            def do_GET(self) -> None:
                """Metrics or a check."""
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path in checks:
                    wrong = checks[self.path]()
                    text = "\n".join(wrong) if wrong else "ok"
                    self._answer(503 if wrong else 200, "text/plain; charset=utf-8", f"{text}\n".encode())
                else:
                    self._answer(404, "text/plain", b"try /metrics, /healthz or /readyz\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes are not worth a line each."""

        class Server(ThreadingHTTPServer):
            """Ends with the process, whoever is still being answered."""

            address_family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            daemon_threads = True

            def server_bind(self) -> None:
                """Without looking up the host's name, which nobody reads."""
                TCPServer.server_bind(self)

        self._server = Server((host.strip("[]"), int(port)), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
