"""Rules for names on the device plugin API: extended resource names and device ids. Pure."""

from __future__ import annotations

import re

DEVICE_ID_LIMIT = 63
"""Longest device id in characters (kubelet-contract A.1)."""

_DOMAIN_LIMIT = 253 - len("requests.")
_NAME_LIMIT = 63
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


class ResourceNameError(ValueError):
    """The kubelet would refuse this extended resource name."""


def resource_name_problem(name: str) -> str | None:
    """Why `name` cannot be an extended resource, None if it can (kubelet-contract A.2).

    The limits are those of a quota name, which has "requests." before the domain: 244 characters for the domain,
    63 for the name.
    """
    domain, slash, short = name.partition("/")
    if not slash:
        return f'resource name "{name}" has no domain: write it as example.com/{name or "name"}'
    if "kubernetes.io/" in name:
        return f'resource name "{name}" is in the namespace *kubernetes.io, which is reserved: use a domain of your own'
    if name.startswith("requests."):
        return f'resource name "{name}" begins with "requests.", which quotas use: use another domain'
    if len(domain) > _DOMAIN_LIMIT or not _DOMAIN.fullmatch(domain):
        return (
            f'resource name "{name}": "{domain}" is not a DNS subdomain of at most {_DOMAIN_LIMIT} characters '
            '(lower case letters, digits, "-" and ".")'
        )
    if len(short) > _NAME_LIMIT or not _NAME.fullmatch(short):
        return (
            f'resource name "{name}": "{short}" must have 1 to {_NAME_LIMIT} letters, digits, "-", "_" or ".", '
            "with a letter or digit at both ends"
        )
    return None


def check_resource_name(name: str) -> None:
    """Raise ResourceNameError if the kubelet would refuse `name`."""
    if (problem := resource_name_problem(name)) is not None:
        raise ResourceNameError(problem)


def file_stem(resource_name: str) -> str:
    """The resource's name as part of a file name. One to one: a domain never has an underscore."""
    return resource_name.replace("/", "_")
