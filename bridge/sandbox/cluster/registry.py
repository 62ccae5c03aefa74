"""What the API server does with a request: defaults, validation, preconditions, finalizers.

In-process parts of the sandbox (kubelet, scheduler) call it directly; everybody else through `apiserver`.
"""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Mapping

from bridge.sandbox.cluster import patching, validation
from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    Unserved,
    clone,
    conflict,
    dig,
    invalid,
    meta,
    name_of,
    namespace_of,
    not_found,
    now,
    stamp,
    terminal,
    uid_of,
)
from bridge.sandbox.cluster.ownership import Ownership
from bridge.sandbox.cluster.resources import BUILT_IN, Profile, Resource
from bridge.sandbox.cluster.store import Store
from bridge.sandbox.cluster.versions import drop_gated

_FREE_TO_WRITE = ("labels", "annotations", "ownerReferences", "finalizers")
_STALE = "the object has been modified; please apply your changes to the latest version and try again"


def parse_fields(resource: Resource, selector: str) -> dict[str, tuple[bool, str]]:
    """Read a field selector: path to (equal, value).

    Raises:
        ApiProblem: 400 for a field that this resource cannot be selected by.
    """
    terms: dict[str, tuple[bool, str]] = {}
    for term in filter(None, selector.split(",")):
        unequal = "!=" in term
        path, _, value = term.partition("!=" if unequal else "==" if "==" in term else "=")
        if path not in ("metadata.name", "metadata.namespace", *resource.fields):
            raise ApiProblem(400, "BadRequest", f'field label not supported: "{path}"')
        terms[path] = (not unequal, value)
    return terms


def selected(obj: Object, terms: Mapping[str, tuple[bool, str]]) -> bool:
    """Say whether an object meets all terms; a missing field is the empty string."""
    return all((str(dig(obj, path, "")) == value) is equal for path, (equal, value) in terms.items())


class Registry:
    """The API server's rules over the store."""

    def __init__(self, store: Store, profile: Profile) -> None:
        self.store, self.profile = store, profile
        self._resources = {(r.group, r.plural): r for r in profile.resources()}
        self._applied: dict[tuple[str, ...], Object] = {}
        self._ownership = Ownership()
        self.create("namespaces", {"metadata": {"name": "default"}})

    # -- resources

    def resources(self) -> tuple[Resource, ...]:
        """Return everything served."""
        return tuple(self._resources.values())

    def serve(self, resource: Resource) -> None:
        """Serve one more resource, as a CustomResourceDefinition would."""
        self._resources[(resource.group, resource.plural)] = resource

    def withdraw(self, resource: Resource) -> None:
        """Stop serving a resource."""
        self._resources.pop((resource.group, resource.plural), None)

    def find(self, plural: str, group: str | None = None) -> Resource:
        """Return a served resource by name.

        Raises:
            ApiProblem: 404 if it is not served.
        """
        for resource in self._resources.values():
            if resource.plural == plural and group in (None, resource.group):
                return resource
        raise Unserved(404, "NotFound", "404 page not found")

    def serves(self, plural: str) -> bool:
        """Say whether a resource is served."""
        return any(resource.plural == plural for resource in self._resources.values())

    # -- reading

    def get(self, plural: str | Resource, name: str, namespace: str = "") -> Object:
        """Return one object, or raise 404."""
        resource = self._resolve(plural)
        found = self.store.get(resource, namespace if resource.namespaced else "", name)
        if found is None:
            raise not_found(resource.plural, name)
        return found

    def find_one(self, plural: str, name: str, namespace: str = "") -> Object | None:
        """Return one object or None."""
        try:
            return self.get(plural, name, namespace)
        except ApiProblem as problem:
            if problem.status == 404:
                return None
            raise

    def select(self, plural: str | Resource, namespace: str | None = None, fields: str = "") -> list[Object]:
        """Return copies of all objects that a field selector admits."""
        return [clone(obj) for obj in self.peek(plural, namespace, fields)]

    def peek(self, plural: str | Resource, namespace: str | None = None, fields: str = "") -> list[Object]:
        """Return all objects that a field selector admits, as they are stored: only to be read."""
        resource = self._resolve(plural)
        terms = parse_fields(resource, fields)
        return [obj for obj in self.store.all(resource, namespace) if selected(obj, terms)]

    def _resolve(self, plural: str | Resource) -> Resource:
        return self.find(plural) if isinstance(plural, str) else plural

    # -- writing

    def create(
        self, plural: str | Resource, obj: Object, namespace: str = "", *, dry_run: bool = False
    ) -> Object:
        """Store a new object: name generated, uid and times set, gated fields dropped, limits checked.

        `dry_run`: all of that, but for the storing.
        """
        resource = self._resolve(plural)
        made = clone(obj)
        data = meta(made)
        if resource.namespaced:
            namespace = namespace or data.get("namespace") or "default"
            data["namespace"] = namespace
        else:
            data.pop("namespace", None)
        if not data.get("name"):
            if not data.get("generateName"):
                raise invalid(
                    resource.kind, "", ["metadata.name: Required value: name or generateName is required"]
                )
            data["name"] = self._generate(resource, namespace, data["generateName"])
        if self.store.get(resource, namespace if resource.namespaced else "", data["name"]) is not None:
            message = f'{resource.plural} "{data["name"]}" already exists'
            raise ApiProblem(409, "AlreadyExists", message, {"name": data["name"], "kind": resource.plural})
        data.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
        made.setdefault("apiVersion", resource.api_version(resource.versions[0]))
        made.setdefault("kind", resource.kind)
        if resource.status:
            made["status"] = {}
        self._default(resource, made)
        made = drop_gated(self.profile, resource, made)
        validation.check(resource, made, None)
        return made if dry_run else self.store.write(resource, made)

    def _generate(self, resource: Resource, namespace: str, prefix: str) -> str:
        while True:
            # Names need no secrecy; the alphabet is the server's.
            tail = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))  # noqa: S311
            name = prefix[: 63 - 5] + tail
            if self.store.get(resource, namespace, name) is None:
                return name

    def _default(self, resource: Resource, made: Object) -> None:
        if resource.plural == "pods":
            made["status"] = {"phase": "Pending"}
            spec = made.setdefault("spec", {})
            spec.setdefault("restartPolicy", "Always")
            spec.setdefault("terminationGracePeriodSeconds", 30)
            spec.setdefault("schedulerName", "default-scheduler")
        if resource.plural == "resourceslices":
            for device in dig(made, "spec.devices", []):
                for taint in device.get("taints") or []:
                    taint.setdefault("timeAdded", now())

    def replace(
        self, plural: str | Resource, obj: Object, subresource: str = "", manager: str = ""
    ) -> Object:
        """Store a new state of an object; `manager` owns then what it changed.

        Raises:
            ApiProblem: 404; 409 if resourceVersion or uid is given and is not the stored one; 422.
        """
        resource = self._resolve(plural)
        stored = self.get(resource, name_of(obj), namespace_of(obj))
        given = meta(obj)
        if given.get("resourceVersion") not in (None, "", meta(stored)["resourceVersion"]):
            raise conflict(resource.plural, name_of(obj), _STALE)
        if given.get("uid") not in (None, "", uid_of(stored)):
            why = f"Precondition failed: UID in precondition: {given['uid']}, in object: {uid_of(stored)}"
            raise conflict(resource.plural, name_of(obj), why)
        result = self._store(resource, stored, self._merged(resource, stored, obj, subresource))
        if manager and _owned(resource):
            self._ownership.updated(uid_of(stored), stored, result, manager)
        return result

    def _merged(self, resource: Resource, stored: Object, obj: Object, subresource: str) -> Object:
        """Return the stored object with what this request may change: the status, or all but the status."""
        merged = clone(stored)
        if subresource == "status":
            merged["status"] = clone(obj.get("status") or {})
            return merged
        for key in set(merged) | set(obj):
            if key in ("metadata", "apiVersion", "kind") or (key == "status" and resource.status):
                continue
            if key in obj:
                merged[key] = clone(obj[key])
            else:
                del merged[key]
        data, given = meta(merged), meta(obj)
        for key in _FREE_TO_WRITE:
            data.pop(key, None)
            if given.get(key):
                data[key] = clone(given[key])
        return merged

    def _store(self, resource: Resource, stored: Object, merged: Object) -> Object:
        self._default_taint_times(resource, merged)
        merged = drop_gated(self.profile, resource, merged)
        validation.check(resource, merged, stored)
        if merged == stored:
            return stored
        if merged.get("spec") != stored.get("spec"):
            meta(merged)["generation"] = meta(stored).get("generation", 1) + 1
        if (
            meta(merged).get("deletionTimestamp")
            and not meta(merged).get("finalizers")
            and _released(resource, merged)
        ):
            return self.store.remove(resource, namespace_of(merged), name_of(merged))
        return self.store.write(resource, merged)

    def _default_taint_times(self, resource: Resource, merged: Object) -> None:
        if resource.plural == "resourceslices":
            for device in dig(merged, "spec.devices", []):
                for taint in device.get("taints") or []:
                    taint.setdefault("timeAdded", now())

    def patch(
        self,
        plural: str | Resource,
        name: str,
        body: Object,
        *,
        namespace: str = "",
        kind: str,
        subresource: str = "",
        manager: str = "",
    ) -> Object:
        """Patch an object; `kind` is `merge` or `strategic`. `manager` owns then what it changed."""
        resource = self._resolve(plural)
        stored = self.get(resource, name, namespace)
        patched = (patching.merge_patch if kind == "merge" else patching.strategic_merge)(stored, body)
        meta(patched)["name"] = name
        return self.replace(resource, patched, subresource, manager)

    def apply(
        self,
        plural: str | Resource,
        name: str,
        body: Object,
        *,
        namespace: str = "",
        manager: str,
        subresource: str = "",
        force: bool = True,
    ) -> Object:
        """Server-side apply; creates the object if it is not there. Only custom resources know conflicts."""
        resource = self._resolve(plural)
        stored = self.find_one(resource.plural, name, namespace)
        if stored is not None and _owned(resource) and not force:
            version = resource.api_version(resource.versions[0])
            self._ownership.check(uid_of(stored), stored, body, manager, version)
        if stored is None:
            if subresource:
                raise not_found(resource.plural, name)
            made = clone(body)
            meta(made)["name"] = name
            result = self.create(resource, made, namespace)
        else:
            before = self._applied.get((uid_of(stored), subresource, manager), {})
            merged = patching.apply(stored, body, before)
            meta(merged)["resourceVersion"] = meta(body).get("resourceVersion")
            result = self.replace(resource, merged, subresource)
        if _owned(resource):
            self._ownership.applied(uid_of(result), stored or {}, body, manager)
        self._applied[uid_of(result), subresource, manager] = clone(body)
        return result

    def update(self, plural: str, obj: Object) -> Object:
        """Store an object as it is, spec, metadata and status in one: for the sandbox's own controllers."""
        resource = self._resolve(plural)
        stored = self.get(resource, name_of(obj), namespace_of(obj))
        if uid_of(stored) != uid_of(obj):
            raise conflict(resource.plural, name_of(obj), "Precondition failed: UID")
        merged = clone(obj)
        meta(merged)["resourceVersion"] = meta(stored)["resourceVersion"]
        return self._store(resource, stored, merged)

    # -- deleting

    def delete(
        self,
        plural: str | Resource,
        name: str,
        namespace: str = "",
        *,
        grace: int | None = None,
        preconditions: Mapping[str, str] | None = None,
    ) -> Object:
        """Delete an object; pods end gracefully (`grace` 0: at once), finalizers hold it."""
        resource = self._resolve(plural)
        stored = self.get(resource, name, namespace)
        wanted = preconditions or {}
        for key, have in (("uid", uid_of(stored)), ("resourceVersion", meta(stored)["resourceVersion"])):
            if wanted.get(key) not in (None, "", have):
                why = f"Precondition failed: {key} in precondition: {wanted[key]}, in object meta: {have}"
                raise conflict(resource.plural, name, why)
        seconds = _grace(stored, grace) if resource.plural == "pods" else 0
        data = meta(stored)
        if seconds == 0 and not data.get("finalizers"):
            return self.store.remove(resource, namespace_of(stored), name_of(stored))
        already = data.get("deletionTimestamp") and seconds >= data.get("deletionGracePeriodSeconds", 0)
        if already:
            return stored
        when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        data.update(deletionTimestamp=stamp(when), deletionGracePeriodSeconds=seconds)
        return self.store.write(resource, stored)

    def delete_all(
        self, plural: str | Resource, namespace: str | None = None, fields: str = ""
    ) -> list[Object]:
        """Delete a collection; return what was in it."""
        resource = self._resolve(plural)
        found = self.select(resource, namespace, fields)
        for obj in found:
            self.delete(resource, name_of(obj), namespace_of(obj))
        return found


def _owned(resource: Resource) -> bool:
    """Say whether it is noted who writes which field: of what the sandbox itself does not write."""
    return resource.group not in BUILT_IN


def _grace(pod: Object, grace: int | None) -> int:
    if not dig(pod, "spec.nodeName") or terminal(pod):
        return 0
    return int(dig(pod, "spec.terminationGracePeriodSeconds", 30)) if grace is None else grace


def _released(resource: Resource, obj: Object) -> bool:
    """Say whether nothing but finalizers held an object in deletion: a pod also waits for its kubelet."""
    return resource.plural != "pods" or not meta(obj).get("deletionGracePeriodSeconds")
