"""Keys, certificates and tokens of the test control plane.

One certificate is the authority and the serving certificate of every component at once: nothing here is
meant to keep anybody out, only to let the real components run as they are.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.addresses import NODE_ADDRESS, SERVICE_ADDRESS

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_DAYS = ("-days", "30")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files of one control plane, and the static tokens by user name."""

    authority: Path
    authority_key: Path
    service_account_key: Path
    client: Path
    client_key: Path
    token_file: Path
    tokens: Mapping[str, str]


def create(directory: Path, node_names: Sequence[str]) -> Credentials:
    """Make everything in a directory, which must exist."""
    authority, authority_key = _authority(directory)
    client, client_key = _client(directory, authority, authority_key)
    service_account_key = directory / "service-account.key"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(service_account_key))
    tokens, token_file = _tokens(directory, node_names)
    return Credentials(authority, authority_key, service_account_key, client, client_key, token_file, tokens)


def _authority(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "ca.crt", directory / "ca.key"
    names = f"IP:127.0.0.1,IP:{NODE_ADDRESS},IP:{SERVICE_ADDRESS},DNS:localhost,DNS:kubernetes.default.svc"
    _openssl(
        *("req", "-x509", *_CURVE, *_DAYS, "-subj", "/CN=test-cluster", "-keyout", str(key)),
        *("-addext", f"subjectAltName={names}", "-out", str(certificate)),
    )
    return certificate, key


def _client(directory: Path, authority: Path, authority_key: Path) -> tuple[Path, Path]:
    """Make the certificate with which the API server reaches the kubelet."""
    certificate, key, request = (directory / f"client.{end}" for end in ("crt", "key", "csr"))
    subject = ("-subj", "/O=system:masters/CN=kube-apiserver")
    _openssl("req", *_CURVE, *subject, "-keyout", str(key), "-out", str(request))
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey", str(authority_key)),
        *("-set_serial", "2", *_DAYS, "-out", str(certificate)),
    )
    return certificate, key


def _tokens(directory: Path, node_names: Sequence[str]) -> tuple[Mapping[str, str], Path]:
    groups = {
        "admin": "system:masters",
        "system:kube-controller-manager": "system:masters",
        "system:kube-scheduler": "",
    } | {f"system:node:{name}": "system:nodes" for name in node_names}
    tokens = {user: secrets.token_hex(16) for user in groups}
    path = directory / "tokens.csv"
    path.touch(mode=0o600)
    path.write_text("".join(f'{tokens[user]},{user},{user},"{group}"\n' for user, group in groups.items()))
    return tokens, path


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
