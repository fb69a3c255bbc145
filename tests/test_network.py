"""How ranks find one another: addresses, interfaces, and the rank that leads a machine."""

import socket
from dataclasses import replace

import pytest

from errors import UserError
from parallel.network import Peer, choose_interface, interface_of, is_loopback, leader_of, own_address, route_to
from parallel.ranks import check_gpu
from training.agreement import flat


def peers(*places):
    """Ranks on machines: (machine, local rank), …"""
    return [
        Peer(rank, local_rank, machine, machine, f"10.0.0.{machine[-1]}", "cpu", 1)
        for rank, (machine, local_rank) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("places", "leaders"),
    [
        ([("m1", 0), ("m1", 1), ("m2", 0), ("m2", 1)], [0, 0, 2, 2]),
        ([("m1", 0), ("m2", 1), ("m2", 0)], [0, 2, 2]),  # DeepSpeed's local ranks where machines differ in size
        ([("m1", 0), ("m2", 0), ("m1", 1), ("m2", 1)], [0, 1, 0, 1]),  # srun --distribution=cyclic
        ([("m1", 0), ("m1", 0)], [0, 1]),  # two launchers on one machine
        ([("m1", 0), ("m1", 1), ("m1", 0), ("m1", 1)], [0, 0, 2, 2]),
    ],
)
def test_the_leader_of_each_rank(places, leaders):
    assert [leader_of(peers(*places), rank) for rank in range(len(places))] == leaders


def test_a_loopback_address_is_not_given_to_others():
    assert is_loopback("127.0.1.1") and is_loopback("::1") and not is_loopback("10.0.0.1")
    assert own_address("10.0.0.2", ["127.0.0.1"]) == "10.0.0.2"
    assert own_address("127.0.1.1", ["127.0.0.1"]) == "127.0.1.1"  # nobody has another one
    assert own_address("127.0.0.1", ["127.0.1.1"]) == "127.0.0.1"
    assert is_loopback(route_to("localhost"))


def test_the_interface_of_an_address():
    (loopback,) = {name for _, name in socket.if_nameindex() if name in ("lo", "lo0")}
    assert interface_of("127.0.0.1") == loopback and interface_of("203.0.113.1") is None


def test_gloo_gets_an_interface_only_across_machines_and_unless_the_user_chose(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    one_machine, two_machines = peers(("m1", 0), ("m1", 1)), peers(("m1", 0), ("m2", 0))
    here = [replace(peer, address="127.0.0.1") for peer in two_machines]  # an address that this machine has
    assert choose_interface(one_machine, 0) is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert choose_interface(here, 0) == "mine"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert choose_interface(here, 0) == interface_of("127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def test_a_rank_beyond_the_gpus():
    check_gpu(1, 2)
    with pytest.raises(UserError, match="local rank 2 .* 2 visible GPUs: start one rank per GPU, .*--gpus-per-node"):
        check_gpu(2, 2)
    with pytest.raises(UserError, match="local rank 1 .* 1 visible GPU:"):
        check_gpu(1, 1)


def test_paths_of_a_deepspeed_file_are_not_compared():
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/a"}}}
    assert flat(config, "") == {"zero_optimization.stage": 3, "zero_optimization.offload_optimizer.device": "nvme"}
