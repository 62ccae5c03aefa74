"""The Kubernetes API as the command line uses it: JSON in, JSON out, errors as a user reads them.

The one module that loads the `kubernetes` package, for what it is good at: kubeconfigs with contexts, exec plugins and
token refresh, TLS, proxies, and exec into a pod. Its typed models are left alone: half of what is read here they lack.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bridge.cli.problems import Problem

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = dict[str, Any]

PAGE = 500
CONNECT_S, READ_S = 10.0, 60.0
EXEC_S = 60.0

_MERGE = "application/merge-patch+json"
_NOT_FOUND, _CONFLICT, _GONE = 404, 409, 410


class ClusterError(Problem):
    """The API server refused, or could not be asked.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
        said: the server's own words.
    """

    def __init__(self, message: str, status: int = 0, code: int = 1, said: str = "") -> None:
        super().__init__(message, code)
        self.status, self.said = status, said or message

    @property
    def missing(self) -> bool:
        """There is no such object, or no such kind."""
        return self.status == _NOT_FOUND

    @property
    def conflict(self) -> bool:
        """Somebody else has written it since it was read."""
        return self.status == _CONFLICT


@dataclass(frozen=True, slots=True)
class Listing:
    """A list and the version of the cluster that it shows: where a watch goes on from."""

    items: tuple[Object, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program in a container wrote, and its exit code."""

    stdout: str
    stderr: str
    code: int


class Cluster:
    """One API server, as one user. Use as a context manager."""

    def __init__(self, client: ApiClient) -> None:
        self._client: Any = client
        self.server = str(self._client.configuration.host)

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, context: str = "") -> Self:
        """As kubectl finds its cluster: the file given, else $KUBECONFIG, else ~/.kube/config, else the pod's own.

        Raises:
            ClusterError: there is no usable configuration.
        """
        from kubernetes.client import ApiClient, Configuration

        configuration: Any = Configuration()
        noted = _Noted()
        logging.getLogger().addHandler(noted)
        try:
            _configure(configuration, kubeconfig, context)
        finally:
            logging.getLogger().removeHandler(noted)
        if noted.errors:
            # The package logs what a credential plugin got wrong, and would go on as nobody.
            said = "; ".join(noted.errors)
            raise ClusterError(f"the kubeconfig's credentials cannot be had: {said}; log in again", code=2)
        configuration.retries = _retries()
        return cls(ApiClient(configuration))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    # Objects

    def get(self, path: str) -> Object:
        """Read one object or document. Raises ClusterError."""
        return self._json("GET", path)

    def find(self, path: str) -> Object | None:
        """Read one object; None if there is none, or its kind is not served. Raises ClusterError."""
        try:
            return self.get(path)
        except ClusterError as error:
            if error.missing:
                return None
            raise

    def all(self, path: str, *, labels: str = "", fields: str = "") -> Listing:
        """Read all objects of a collection that selectors admit, in pages. Raises ClusterError."""
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE)}
        items: list[Object] = []
        while True:
            try:
                page = self._json("GET", path, {key: value for key, value in query.items() if value})
            except ClusterError as error:
                if error.status != _GONE or "continue" not in query:
                    raise
                # The pages are older than what the server keeps: all in one, as client-go does.
                query, items = {**query, "limit": "", "continue": ""}, []
                continue
            items += page.get("items") or []
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return Listing(tuple(items), str(meta.get("resourceVersion", "")))
            query["continue"] = meta["continue"]

    def create(self, path: str, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object, or have the server say what it would make of it. Raises ClusterError."""
        return self._json("POST", path, {"dryRun": "All"} if dry_run else {}, body)

    def patch(self, path: str, body: Object, *, dry_run: bool = False) -> Object:
        """Merge into an object; a resourceVersion in the body has to be the stored one. Raises ClusterError."""
        return self._json("PATCH", path, {"dryRun": "All"} if dry_run else {}, body, _MERGE)

    def watch(self, path: str, since: str, seconds: int) -> Iterator[tuple[str, Object]]:
        """What changes in a collection, as (type, object), for so many seconds or until the server ends it.

        Raises:
            ClusterError: status 410 where `since` is too old: list again.
        """
        query = {"watch": "true", "resourceVersion": since, "timeoutSeconds": str(seconds)}
        response = self._send("GET", path, query, read=seconds + READ_S)
        try:
            yield from _events(self, path, response)
        finally:
            response.response.close()

    # Programs in pods

    def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Ran:
        """Run a program in a container to its end. Raises ClusterError where it cannot be run."""
        from kubernetes.client import CoreV1Api
        from kubernetes.client.exceptions import ApiException
        from kubernetes.stream import stream

        core: Any = CoreV1Api(self._client)
        run: Any = stream
        what = f"run {command[0]} in pod {namespace}/{pod}"
        try:
            socket = run(
                core.connect_get_namespaced_pod_exec,
                pod,
                namespace,
                container=container,
                command=list(command),
                stdin=False,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )
            socket.run_forever(timeout=EXEC_S)
            if socket.is_open():
                socket.close()
                raise ClusterError(f"cannot {what}: it did not end within {EXEC_S:.0f} s")
            out, err, code = socket.read_stdout(), socket.read_stderr(), socket.returncode
        except ApiException as error:
            raise ClusterError(_exec_refused(what, str(error.reason)), error.status or 0) from error
        except OSError as error:
            raise ClusterError(f"cannot {what}: {error}") from error
        return Ran(_text(out), _text(err), 1 if code is None else int(code))

    # The wire

    def _json(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
    ) -> Object:
        response = self._send(verb, path, query or {}, body, kind)
        raw = self._read(response, verb, path)
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise ClusterError(f"{self.server} answered {verb} {path}, but not with JSON") from error
        if not isinstance(answer, dict):
            raise ClusterError(f"{self.server} answered {verb} {path}, but not with an object")
        return answer

    def _send(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        kind: str = "application/json",
        read: float = READ_S,
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "Content-Type": kind}
        sent = self._client.param_serialize(
            verb, path, query_params=list(query.items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = self._client.call_api(*sent, _request_timeout=(CONNECT_S, read))
        except (HTTPError, OSError) as error:
            raise self._unreachable(str(getattr(error, "reason", None) or error)) from error
        except ApiException as error:  # raised for TLS alone: answers come back as they are
            raise self._unreachable(str(error.reason)) from error
        if response.status >= 400:
            raise self._refused(verb, path, response.status, self._read(response, verb, path))
        return response

    def _read(self, response: Any, verb: str, path: str) -> bytes:
        from urllib3.exceptions import HTTPError

        try:
            return bytes(response.read())
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the answer of {self.server} to {verb} {path} broke off: {error}") from error

    def _unreachable(self, why: str) -> ClusterError:
        why = " ".join(why.split())
        if "certificate" in why.lower() or "ssl" in why.lower():
            mend = "is it the right cluster, and its certificate authority in the kubeconfig?"
        else:
            mend = "is the address right, and the network or VPN up?"
        return ClusterError(f"cannot reach the API server {self.server}: {why}; {mend}")

    def _refused(self, verb: str, path: str, status: int, raw: bytes) -> ClusterError:
        said = _message(raw) or f"{verb} {path}: HTTP {status}"
        if status == 401:
            return ClusterError(
                f"the API server {self.server} does not know you ({said}): the credentials of this kubeconfig context "
                "are wrong or have expired; log in again, or choose another with --context",
                status,
            )
        if status == 403:
            return ClusterError(
                f"not allowed: {said}; ask for that right, or use another context with --context",
                status,
                said=said,
            )
        return ClusterError(f"{self.server}: {said}", status, said=said)


def _retries() -> Any:
    """Again only where the server said when: it is busy, and has done nothing."""
    from urllib3.util.retry import Retry

    return Retry(
        total=None,
        connect=0,
        read=0,
        redirect=0,
        other=0,
        status=4,
        allowed_methods=None,
        raise_on_status=False,
    )


class _Noted(logging.Handler):
    """Keeps errors that somebody logs, instead of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.errors.append(" ".join(record.getMessage().split()))


def _configure(configuration: Any, kubeconfig: Path | None, context: str) -> None:
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    load: Any = config
    named = str(kubeconfig or os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    there = any(Path(one).expanduser().exists() for one in named.split(os.pathsep) if one)
    try:
        if not there and not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            load.load_incluster_config(client_configuration=configuration)
            return
        if not there:
            raise ClusterError(
                f"there is no kubeconfig at {named}: give one with --kubeconfig or KUBECONFIG", code=2
            )
        load.load_kube_config(named, context=context or None, client_configuration=configuration)
    except (ConfigException, YAMLError, OSError, KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ClusterError(f"the kubeconfig {named} cannot be used: {said}", code=2) from error


def _events(cluster: Cluster, path: str, response: Any) -> Iterator[tuple[str, Object]]:
    """The events of a watch; it ends without a word when the server or the network ends it."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.response.stream(None):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                event = json.loads(line)
                kind, what = str(event.get("type")), event.get("object") or {}
                if kind == "ERROR":
                    raise ClusterError(
                        f"{cluster.server}: watch of {path}: {what.get('message')}",
                        int(what.get("code") or 0),
                    )
                yield kind, what
    except (HTTPError, OSError):
        return  # whoever follows a collection lists again, and hears there if the server is away
    except ValueError as error:
        raise ClusterError(f"{cluster.server} answered the watch of {path}, but not with JSON") from error


def _message(raw: bytes) -> str:
    try:
        status = json.loads(raw)
    except ValueError:
        return " ".join(raw.decode(errors="replace").split())[:200]
    return str(status.get("message", "")) if isinstance(status, dict) else ""


def _exec_refused(what: str, reason: str) -> str:
    said = " ".join(reason.partition("-+-+-")[0].split())  # behind it: the answer's headers and body
    if "403" in said:
        return f"cannot {what}: not allowed; it needs the verbs get and create on pods/exec there"
    if "404" in said:
        return f"cannot {what}: the pod is gone; try again"
    return f"cannot {what}: {said[:200]}"


def _text(raw: object) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw or "")
