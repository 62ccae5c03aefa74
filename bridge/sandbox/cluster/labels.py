"""Label selectors: pure, from a text to a test of objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from bridge.sandbox.cluster.objects import ApiProblem, Object, dig

_LABEL_TERM = re.compile(
    r"(?P<not>!)?(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)"
    r"(?:\s*(?P<op>!=|==?)\s*(?P<value>[-A-Za-z0-9_.]*)|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?"
)


def labelled(selector: str) -> Callable[[Object], bool]:
    """Read a label selector: `a=b,c!=d,e,!f,g in (h,i),j notin (k)`.

    Raises:
        ApiProblem: 400, it is none.
    """
    tests = [_label_test(term.strip(), selector) for term in re.split(r",(?![^()]*\))", selector) if selector]
    return lambda obj: all(test(dig(obj, "metadata.labels", {})) for test in tests)


def _label_test(term: str, selector: str) -> Callable[[Mapping[str, str]], bool]:
    found = _LABEL_TERM.fullmatch(term)
    if found is None or (found["not"] and (found["op"] or found["set"])):
        raise ApiProblem(400, "BadRequest", f'unable to parse requirement: found "{term}" in "{selector}"')
    key = found["key"]
    if found["set"]:
        values = {value.strip() for value in found["values"].split(",")}
        return lambda labels: (labels.get(key) in values) is (found["set"] == "in")
    if found["op"]:
        return lambda labels: (labels.get(key) == found["value"]) is (found["op"] != "!=")
    return lambda labels: (key in labels) is not bool(found["not"])
