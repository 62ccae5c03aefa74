"""The API server's HTTP edge: paths, verbs, versions, watches, errors, and faults to switch on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from bridge.sandbox.cluster import discovery
from bridge.sandbox.cluster.labels import labelled
from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    Unserved,
    invalid,
    meta,
    name_of,
    namespace_of,
)
from bridge.sandbox.cluster.registry import Registry, parse_fields
from bridge.sandbox.cluster.resources import BUILT_IN, Resource
from bridge.sandbox.cluster.versions import to_served, to_stored
from bridge.sandbox.cluster.watching import stream
from bridge.sandbox.observe import Observations


@dataclass(frozen=True, slots=True)
class Target:
    """What a request path names."""

    resource: Resource
    version: str
    namespace: str | None
    name: str
    subresource: str
    group: str


@dataclass(slots=True)
class Faults:
    """Switches of misbehaviour; all off at first.

    Attributes:
        unavailable: every request is answered 503, and watches are ended.
        latency: seconds that each request waits before it is looked at.
        forbidden: (verb, plural) pairs that are answered 403; `*` stands for any.
    """

    unavailable: bool
    latency: float
    forbidden: set[tuple[str, str]]


class ApiServer:
    """An API server on loopback TCP.

    Attributes:
        url: where it listens, once started.
        requests: count of requests by (verb, plural), for tests of request budgets.
        watched: set once some client has begun a watch.
        asked: set at each request, once it is counted.
    """

    def __init__(self, registry: Registry, observe: Observations) -> None:
        self.registry, self._observe = registry, observe
        self.faults = Faults(unavailable=False, latency=0, forbidden=set())
        self.requests: Counter[tuple[str, str]] = Counter()
        self.url = ""
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._watching: set[asyncio.Event] = set()
        self.watched = asyncio.Event()
        self.asked = asyncio.Event()

    async def start(self) -> Self:
        """Listen; on the same port as before if it was stopped."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._observe.tell("apiserver", "Serving", self.url)
        return self

    @property
    def up(self) -> bool:
        """Whether clients get answers: listening, and not told to be unavailable."""
        return self._runner is not None and not self.faults.unavailable

    async def stop(self) -> None:
        """Stop listening: connections are refused until `start`."""
        self.drop_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -- faults

    def unavailable(self, on: bool = True) -> None:
        """Answer everything with 503 (and end the watches), or stop doing so."""
        self.faults.unavailable = on
        self._observe.tell("apiserver", "Unavailable" if on else "Available", self.url)
        if on:
            self.drop_watches()

    def drop_watches(self) -> int:
        """End all watches of HTTP clients now; they may come back."""
        for ended in self._watching:
            ended.set()
        return len(self._watching)

    def forbid(self, verb: str, plural: str) -> None:
        """Answer 403 to `verb` on `plural` (`resourceclaims/status` for a subresource, `*` for any)."""
        self.faults.forbidden.add((verb, plural))

    def allow(self, verb: str, plural: str) -> None:
        """Undo `forbid`."""
        self.faults.forbidden.discard((verb, plural))

    # -- requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if self.faults.latency:
                await asyncio.sleep(self.faults.latency)
            if self.faults.unavailable:
                raise ApiProblem(
                    503, "ServiceUnavailable", "the server is currently unable to handle the request"
                )
            if (found := discovery.answer(self.registry, request.path)) is not None:
                return web.json_response(found)
            if (kind := discovery.ACCESS_REVIEWS.get(request.path)) is not None:
                return await self._review(request, kind)
            target = self._target(request.path)
            verb = _verb(request, target)
            self._admit(
                verb, target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
            )
            if verb == "watch":
                return await self._watch(request, target)
            return await self._answer(request, target, verb)
        except Unserved as problem:
            return web.Response(status=problem.status, text=f"{problem.message}\n")
        except ApiProblem as problem:
            return web.json_response(problem.as_status(), status=problem.status)
        except ConnectionResetError:
            return web.Response()  # to a client that has gone

    def _target(self, path: str) -> Target:
        missing = Unserved(404, "NotFound", "404 page not found")
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["api"]:
            group, version, rest = "", *parts[1:2], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise missing
        namespace = None
        if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        if not 1 <= len(rest) <= 3:
            raise missing
        resource = self.registry.find(rest[0], discovery.storage_group(group, rest[0]))
        if version not in resource.versions:
            raise missing
        name, subresource = [*rest[1:], "", ""][:2]
        if subresource == "status" and not resource.status:
            raise missing
        return Target(resource, version, namespace, name, subresource, group)

    def _admit(self, verb: str, plural: str) -> None:
        self.requests[(verb, plural)] += 1
        self.asked.set()
        for pair in ((verb, plural), ("*", plural), (verb, "*"), ("*", "*")):
            if pair in self.faults.forbidden:
                message = f'{plural} is forbidden: User "daemon" cannot {verb} resource "{plural}"'
                raise ApiProblem(403, "Forbidden", message, {"kind": plural})

    async def _review(self, request: web.Request, kind: str) -> web.Response:
        """Say whether the client, or the one it asks about, may do something: all that is not forbidden."""
        if kind == "subjectaccessreviews":
            self._admit("create", kind)
        else:
            self.requests[("create", kind)] += 1  # what one may do oneself, everybody may ask
        body: Object = json.loads(await request.read())
        asked = body["spec"]["resourceAttributes"]
        sub = asked.get("subresource", "")
        plural = asked["resource"] + (f"/{sub}" if sub else "")
        pairs = {(verb, what) for verb in (asked["verb"], "*") for what in (plural, "*")}
        body["status"] = {"allowed": not pairs & self.faults.forbidden}
        return web.json_response(body, status=201)

    async def _answer(self, request: web.Request, target: Target, verb: str) -> web.Response:
        answers: dict[str, Callable[[web.Request, Target], Awaitable[Object]]] = {
            "get": self._get,
            "list": self._list,
            "create": self._create,
            "update": self._replace,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }
        if "dryRun" in request.query and verb != "create":
            raise ApiProblem(400, "BadRequest", "this server does dry runs of creations only")
        body = await answers[verb](request, target)
        return web.json_response(body, status=201 if verb == "create" else 200)

    def _shown(self, target: Target, obj: Object) -> Object:
        served = to_served(target.resource, target.version, obj)
        return discovery.rename_event(target.group, served, stored=False)

    async def _get(self, request: web.Request, target: Target) -> Object:
        return self._shown(target, self.registry.get(target.resource, target.name, target.namespace or ""))

    async def _list(self, request: web.Request, target: Target) -> Object:
        found = self.registry.select(
            target.resource, target.namespace, request.query.get("fieldSelector", "")
        )
        chosen = labelled(request.query.get("labelSelector", ""))
        found = [obj for obj in found if chosen(obj)]
        meta: Object = {"resourceVersion": str(self.registry.store.revision)}
        if limit := int(request.query.get("limit", "0")):
            begun, _, offset = request.query.get("continue", "").partition("/")
            meta["resourceVersion"] = begun or meta["resourceVersion"]
            after = int(offset or "0") + limit
            if len(found) > after:
                meta["continue"] = f"{meta['resourceVersion']}/{after}"
            found = found[after - limit : after]
        return {
            "kind": f"{target.resource.kind}List",
            "apiVersion": target.resource.api_version(target.version),
            "metadata": meta,
            "items": [self._shown(target, obj) for obj in found],
        }

    async def _body(self, request: web.Request, target: Target) -> Object:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise ApiProblem(400, "BadRequest", f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiProblem(400, "BadRequest", "the body is not an object")
        body = discovery.rename_event(target.group, body, stored=True)
        return to_stored(target.resource, target.version, body)

    async def _create(self, request: web.Request, target: Target) -> Object:
        body = await self._body(request, target)
        if target.namespace and namespace_of(body) not in ("", target.namespace):
            raise ApiProblem(
                400, "BadRequest", "the namespace of the object does not match that of the request"
            )
        dry_run = request.query.get("dryRun") == "All"
        made = self.registry.create(target.resource, body, target.namespace or "", dry_run=dry_run)
        return self._shown(target, made)

    async def _replace(self, request: web.Request, target: Target) -> Object:
        body = await self._body(request, target)
        if name_of(body) != target.name:
            raise ApiProblem(400, "BadRequest", "the name of the object does not match the name on the URL")
        if target.namespace:
            meta(body)["namespace"] = target.namespace
        if target.resource.group not in BUILT_IN and not meta(body).get("resourceVersion"):
            why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
            raise invalid(target.resource.kind, target.name, [why])
        return self._shown(
            target, self.registry.replace(target.resource, body, target.subresource, _manager(request))
        )

    async def _patch(self, request: web.Request, target: Target) -> Object:
        body = await self._body(request, target)
        namespace = target.namespace or ""
        match request.content_type:
            case "application/merge-patch+json" | "application/strategic-merge-patch+json" as kind:
                patched = self.registry.patch(
                    target.resource,
                    target.name,
                    body,
                    namespace=namespace,
                    kind="merge" if "/merge" in kind else "strategic",
                    subresource=target.subresource,
                    manager=_manager(request),
                )
            case "application/apply-patch+yaml" | "application/apply-patch+json":
                if not (manager := request.query.get("fieldManager")):
                    raise ApiProblem(400, "BadRequest", "fieldManager is required for apply patch")
                patched = self.registry.apply(
                    target.resource,
                    target.name,
                    body,
                    namespace=namespace,
                    manager=manager,
                    subresource=target.subresource,
                    force=request.query.get("force") in ("1", "true"),
                )
            case other:
                raise ApiProblem(415, "UnsupportedMediaType", f"the patch type {other} is not supported")
        return self._shown(target, patched)

    async def _delete(self, request: web.Request, target: Target) -> Object:
        raw = await request.read()
        options: Object = json.loads(raw) if raw else {}
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        deleted = self.registry.delete(
            target.resource,
            target.name,
            target.namespace or "",
            grace=None if grace is None else int(grace),
            preconditions=options.get("preconditions"),
        )
        return self._shown(target, deleted)

    async def _delete_all(self, request: web.Request, target: Target) -> Object:
        selector = request.query.get("fieldSelector", "")
        self.registry.delete_all(target.resource, target.namespace, selector)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        terms = parse_fields(target.resource, request.query.get("fieldSelector", ""))
        if request.query.get("labelSelector"):
            raise ApiProblem(400, "BadRequest", "this server selects by labels in lists only")
        if target.name:
            terms["metadata.name"] = (True, target.name)
        ended = asyncio.Event()
        self._watching.add(ended)
        self.watched.set()
        try:
            return await stream(
                self.registry,
                request,
                target.resource,
                target.namespace,
                terms,
                lambda obj: self._shown(target, obj),
                ended,
            )
        finally:
            self._watching.discard(ended)


def _manager(request: web.Request) -> str:
    """Who writes: as it says, or by the name of its program."""
    return request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]


def _verb(request: web.Request, target: Target) -> str:
    match request.method:
        case "GET" if request.query.get("watch") in ("1", "true"):
            return "watch"
        case "GET":
            return "get" if target.name else "list"
        case "POST" if not target.name:
            return "create"
        case "PUT" if target.name:
            return "update"
        case "PATCH" if target.name:
            return "patch"
        case "DELETE":
            return "delete" if target.name else "deletecollection"
        case method:
            raise ApiProblem(405, "MethodNotAllowed", f"the server does not allow {method} on this resource")
