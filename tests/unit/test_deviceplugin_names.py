"""Names and device lists that the kubelet would refuse are refused here, in words."""

from __future__ import annotations

import pytest

from deviceplugin_v1beta1 import Device, DeviceListError, resource_name_problem
from deviceplugin_v1beta1.names import file_stem
from deviceplugin_v1beta1.plugin import checked


@pytest.mark.parametrize(
    "name",
    [
        "example.com/acc",
        "device-bridge.io/nx-gzip",
        "power-dev-plugin/dev",
        "a/B_c.d",
        "x/" + "n" * 63,
        ".".join(["d" * 60] * 4) + "/n",
    ],
)
def test_an_extended_resource_is_accepted(name: str) -> None:
    assert resource_name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("acc", "domain"),
        ("", "domain"),
        ("kubernetes.io/acc", "reserved"),
        ("deviceclass.resource.kubernetes.io/acc", "reserved"),
        ("requests.example.com/acc", "quotas"),
        ("Example.com/acc", "DNS subdomain"),
        ("a_b/acc", "DNS subdomain"),
        (("d" * 63 + ".") * 3 + "d" * 60 + "/n", "DNS subdomain"),
        ("example.com/", "letters"),
        ("example.com/a/b", "letters"),
        ("example.com/-a", "both ends"),
        ("example.com/" + "n" * 64, "63"),
    ],
)
def test_what_the_kubelet_refuses_is_refused_with_the_reason(name: str, word: str) -> None:
    problem = resource_name_problem(name)
    assert problem is not None
    assert word in problem
    assert name in problem


def test_file_names_of_different_resources_differ() -> None:
    assert file_stem("a.b/c_d") != file_stem("a.b/c.d") != file_stem("a/b.c_d")


def test_every_bad_id_of_a_list_is_named() -> None:
    with pytest.raises(DeviceListError) as caught:
        checked([Device("a"), Device("a"), Device(""), Device("x" * 64), Device("y" * 63)])
    text = str(caught.value)
    assert '"a" is there twice' in text
    assert "empty id" in text
    assert "64 characters, 63 are allowed" in text
    assert "y" * 63 not in text
