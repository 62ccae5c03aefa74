"""Groups of one daemon: what one of them lacks or breaks, what the others do, and what is said of it."""

from __future__ import annotations

import pytest

from bridge.daemon.run import StartError
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import acc, stage


async def test_devices_left_out_are_told_once() -> None:
    async with stage(start=False) as node:
        (node.box.paths.root / "dev/crypto/acc7").mkdir()
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        node.box.tree.add("/dev/crypto/acc5")
        await node.lists({acc(0), acc(1), acc(5)}, set())
        told = [record for record in node.log.records if "acc7" in str(vars(record))]
        assert len(told) == 1 and told[0].levelname == "WARNING"


async def test_claims_left_from_dual_need_the_api_server_and_the_refusal_says_so() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[claim["metadata"]["uid"]].error
        await node.stop()
        node.config["mode"] = "device-plugin"
        node.box.paths.kubeconfig.write_text("{}")
        with pytest.raises(StartError, match="DRA, offered or still held in acc, needs the API server"):
            await node.start()


@pytest.mark.parametrize("renamed", [{"name": "other"}, {"resourceName": "example.com/other"}])
async def test_a_group_cannot_be_renamed_under_its_holds(renamed: dict[str, str]) -> None:
    async with stage() as node:
        await node.allocate(acc(1))
        await node.stop()
        files = sorted(path.name for path in node.box.paths.cdi_static.iterdir())
        group = node.config["groups"][0]
        node.config["groups"] = [group | renamed]
        with pytest.raises(StartError, match=f"{acc(1)} by a pod not yet identified.*put .* back"):
            await node.start()
        assert sorted(path.name for path in node.box.paths.cdi_static.iterdir()) == files
        node.config["groups"] = [group]
        await node.start()
        await node.offers(acc(0))


async def test_damage_found_at_a_start_is_accepted_by_a_later_one_only() -> None:
    async with stage() as node:
        await node.stop()
        (node.state / "ledger.db").write_bytes(b"junk" * 1000)
        await node.start(accept_empty_ledger=True)
        with pytest.raises(EndpointError, match=f"{acc(1)} is quarantined"):
            await node.allocate(acc(1))
        assert any("does not accept damage that this start found" in r.getMessage() for r in node.log.records)
        await node.stop()
        await node.start(accept_empty_ledger=True)
        await node.allocate(acc(1))
        assert any("lifted, as told" in r.getMessage() for r in node.log.records)
        await node.stop()
        await node.start(accept_empty_ledger=True)
        assert any("has nothing to accept" in r.getMessage() for r in node.log.records)
        assert set(node.ledger()) == {acc(1)}
