"""Where the API server is and who we are: kubeconfig files, the in-cluster ServiceAccount, explicit values.

Reads files and builds TLS contexts; talks to nobody. Tokens that come from a file are read again when the
file changes, since the kubelet renews projected tokens in place.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dra_v1.kube_errors import Json

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeConfigError(ValueError):
    """The description of the cluster or the credentials cannot be used; the message says why."""


@dataclass(slots=True)
class Token:
    """A bearer token, fixed or kept in a file that somebody renews.

    Attributes:
        fixed: the token itself; empty where `file` is set, or where there is none.
        file: file that holds the token.
    """

    fixed: str = ""
    file: Path | None = None
    _seen: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)

    def current(self) -> str:
        """The token to send now, empty for none.

        Raises:
            OSError: the token file cannot be read.
        """
        if self.file is None:
            return self.fixed
        found = self.file.stat()
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self.fixed = self.file.read_text().strip()
            self._seen = seen
        return self.fixed


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one API server.

    Attributes:
        server: base URL without a trailing slash.
        tls: TLS context; None for plain http.
        token: bearer token.
    """

    server: str
    tls: ssl.SSLContext | None
    token: Token


def tls_context(
    *,
    ca_file: str | None = None,
    ca_data: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """A client context; `ca_data` is PEM text. Without a CA the system's are used."""
    context = ssl.create_default_context(cafile=ca_file, cadata=ca_data)
    # Python 3.13 refuses CA certificates without an authority key identifier, which many clusters have.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert_file:
        context.load_cert_chain(cert_file, key_file)
    return context


def in_cluster(folder: Path = SERVICE_ACCOUNT, env: Mapping[str, str] = os.environ) -> Connection:
    """The connection of a pod: the ServiceAccount's token and CA, the server from the environment.

    Raises:
        KubeConfigError: this process does not run in a pod with a mounted ServiceAccount token.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    ca, token = folder / "ca.crt", folder / "token"
    if not host or not token.exists():
        raise KubeConfigError(
            f"not in a pod with a ServiceAccount: KUBERNETES_SERVICE_HOST is {repr(host) if host else 'not set'} and "
            f"{token} {'exists' if token.exists() else 'does not exist'}; name a kubeconfig file, or set "
            "automountServiceAccountToken"
        )
    if ":" in host:
        host = f"[{host}]"
    return Connection(f"https://{host}:{port}", tls_context(ca_file=str(ca)), Token(file=token))


def from_kubeconfig(path: Path, context: str | None = None) -> Connection:
    """The connection that a kubeconfig file describes, for `context` or the file's current one.

    Raises:
        KubeConfigError: unreadable file, missing entry, or a way to log in that needs another program.
    """
    document = _read(path)
    if not isinstance(document, dict):
        raise KubeConfigError(f"{path} is not a kubeconfig: its top level is not a mapping")
    chosen = context or str(document.get("current-context") or "")
    if not chosen:
        raise KubeConfigError(f"{path} names no current-context; name a context")
    entry = _named(document, "contexts", chosen, path)["context"]
    cluster = _named(document, "clusters", str(entry.get("cluster", "")), path)["cluster"]
    user = _named(document, "users", str(entry["user"]), path).get("user") or {} if entry.get("user") else {}
    server = str(cluster.get("server", "")).rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise KubeConfigError(f"{path}: the cluster of context {chosen!r} has no usable server: {server!r}")
    tls = _tls(cluster, user, path) if server.startswith("https://") else None
    return Connection(server, tls, _token(user, path))


def _read(path: Path) -> object:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise KubeConfigError(f"cannot read the kubeconfig {path}: {error}") from error
    with contextlib.suppress(ValueError):
        return json.loads(text)  # which is YAML too
    import yaml  # a daemon in a pod never needs it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KubeConfigError(f"cannot read the kubeconfig {path}: {error}") from error


def _named(document: Json, section: str, name: str, path: Path) -> Json:
    for entry in document.get(section) or []:
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise KubeConfigError(f"{path} has no entry {name!r} in its {section}")


def _token(user: Json, path: Path) -> Token:
    if "exec" in user or "auth-provider" in user:
        raise KubeConfigError(
            f"{path} logs in through another program (exec or auth-provider), which a node daemon does not "
            "run; use a token, a token file or a client certificate"
        )
    if user.get("tokenFile"):
        return Token(file=path.parent / str(user["tokenFile"]))
    return Token(fixed=str(user.get("token", "")))


def _tls(cluster: Json, user: Json, path: Path) -> ssl.SSLContext:
    ca_data = _decoded(cluster, "certificate-authority-data", path)
    ca_file = cluster.get("certificate-authority")
    try:
        context = tls_context(
            ca_data=ca_data.decode() if ca_data else None,
            ca_file=str(path.parent / ca_file) if ca_file and not ca_data else None,
            verify=not cluster.get("insecure-skip-tls-verify", False),
        )
        _load_client_certificate(context, user, path)
    except (OSError, ssl.SSLError) as error:
        raise KubeConfigError(f"{path}: a certificate or key cannot be used: {error}") from error
    return context


def _load_client_certificate(context: ssl.SSLContext, user: Json, path: Path) -> None:
    """OpenSSL reads certificate and key from files only, so inline ones pass through a private folder."""
    with tempfile.TemporaryDirectory(prefix="kubeconfig-") as folder:
        files: list[str] = []
        for key in ("client-certificate", "client-key"):
            inline = _decoded(user, f"{key}-data", path)
            if inline:
                file = Path(folder) / key
                file.touch(mode=0o600)
                file.write_bytes(inline)
                files.append(str(file))
            elif user.get(key):
                files.append(str(path.parent / str(user[key])))
        if len(files) == 1:
            raise KubeConfigError(
                f"{path}: a client certificate needs both client-certificate and client-key"
            )
        if files:
            context.load_cert_chain(files[0], files[1])


def _decoded(section: Json, key: str, path: Path) -> bytes:
    try:
        return base64.b64decode(str(section.get(key) or ""), validate=True)
    except binascii.Error as error:
        raise KubeConfigError(f"{path}: {key} is not base64: {error}") from error
