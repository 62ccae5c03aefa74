"""Names that Kubernetes must accept: groups, resources, drivers. Pure; each check raises ValueError."""

from __future__ import annotations

import re

DOMAIN = "device-bridge.io"

LONGEST_DRIVER = 63
"""kubelet-contract C.1."""

LONGEST_GROUP = LONGEST_DRIVER - len(f".{DOMAIN}")
"""So that the default driver name of every group is a legal one."""

_LONGEST_SUBDOMAIN = 253
_LONGEST_NAME = 63
_QUOTA_PREFIX = "requests."

_GROUP = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def default_resource(group: str) -> str:
    """The extended resource of a group that names none."""
    return f"{DOMAIN}/{group}"


def default_driver(group: str) -> str:
    """The DRA driver of a group that names none."""
    return f"{group}.{DOMAIN}"


def check_group(name: str) -> str:
    """A DNS label that begins with a letter: it is also a CDI class, which must."""
    if len(name) > LONGEST_GROUP or not _GROUP.fullmatch(name):
        raise ValueError(
            f"must be at most {LONGEST_GROUP} lower-case letters, digits and '-', beginning with a letter and "
            f"ending with a letter or digit, not {name!r}"
        )
    return name


def check_resource(name: str) -> str:
    """An extended resource name as the kubelet accepts it (kubelet-contract A.2)."""
    domain, slash, rest = name.partition("/")
    if not slash:
        raise ValueError(f"an extended resource has a domain: DOMAIN/NAME, not {name!r}")
    if "kubernetes.io/" in name:
        raise ValueError(f"the domain kubernetes.io is Kubernetes' own; take another than {domain!r}")
    if name.startswith(_QUOTA_PREFIX):
        raise ValueError(f"must not begin with {_QUOTA_PREFIX!r}, which quotas use: {name!r}")
    if not _SUBDOMAIN.fullmatch(domain) or len(domain) > _LONGEST_SUBDOMAIN - len(_QUOTA_PREFIX):
        raise ValueError(
            f"the part before '/' must be a DNS name in lower case of at most "
            f"{_LONGEST_SUBDOMAIN - len(_QUOTA_PREFIX)} characters, not {domain!r}"
        )
    if not _QUALIFIED_NAME.fullmatch(rest) or len(rest) > _LONGEST_NAME:
        raise ValueError(
            f"the part after '/' must be at most {_LONGEST_NAME} letters, digits, '-', '_' and '.', beginning and "
            f"ending with a letter or digit, not {rest!r}"
        )
    return name


def check_driver(name: str) -> str:
    """A DRA driver name (kubelet-contract C.1)."""
    if len(name) > LONGEST_DRIVER or not _SUBDOMAIN.fullmatch(name):
        raise ValueError(
            f"a driver name is a DNS name in lower case of at most {LONGEST_DRIVER} characters, not {name!r}"
        )
    return name
