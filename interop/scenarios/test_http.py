"""HTTP over the tunnel, both ways, by short name, full name, IPv4 and IPv6."""

from __future__ import annotations

import pytest

from interop.bed import random_file, sha256_of
from interop.conftest import Town
from interop.lab import LabError

FORMS = ["short", "full", "v4", "v6"]


def _form(form: str, name: str, addresses: tuple[str, str]) -> str:
    return {"short": name, "full": f"{name}.mesh.test", "v4": addresses[0], "v6": addresses[1]}[form]


@pytest.mark.parametrize("form", FORMS)
def test_userspace_stock_fetches_from_us(town: Town, form: str) -> None:
    town.bed.expect_hello(town.stock, _form(form, "mesh", town.mesh.addresses), "mesh")


# A stock resolver answers only IPv4 for a name that has both (tailscale issue 1152): IPv6 goes by address.
@pytest.mark.parametrize("form", ["full", "v4", "v6"])
def test_tun_stock_fetches_from_us(town: Town, form: str) -> None:
    town.bed.expect_hello(town.tun, _form(form, "mesh", town.mesh.addresses), "mesh")


@pytest.mark.parametrize("peer", ["stock", "tun"])
@pytest.mark.parametrize("form", FORMS)
def test_our_socks5_fetches_from_stock(town: Town, form: str, peer: str) -> None:
    addresses = town.stock.addresses if peer == "stock" else town.tun.addresses
    town.bed.expect_hello(town.mesh, _form(form, peer, addresses), peer)


@pytest.mark.parametrize("form", FORMS)
def test_nc_carries_a_request_and_its_answer(town: Town, form: str) -> None:
    target = _form(form, "stock", town.stock.addresses)
    answer = town.mesh.nc(target, 80, b"GET /hello.txt HTTP/1.0\r\nHost: stock\r\n\r\n")
    assert answer.startswith(b"HTTP/1.")
    assert answer.endswith(b"hello from stock\n")


def test_unknown_name_is_refused_with_a_sentence(town: Town) -> None:
    with pytest.raises(LabError, match="nosuch"):
        town.mesh.nc("nosuch", 80, b"")


def test_ranges_and_types_of_served_files(town: Town) -> None:
    part = town.bed.curl(town.stock, "http://mesh/hello.txt", "-H", "Range: bytes=6-9")
    assert (part.status, part.text) == (206, "from")
    assert town.bed.curl(town.stock, "http://mesh/../../../etc/passwd", "--path-as-is").status in (400, 403, 404)
    kind = town.stock.host.run("curl", "-sSI", *town.stock.curl_words(), "http://mesh/hello.txt", timeout_s=15).stdout
    assert "text/plain" in kind.lower()


@pytest.mark.parametrize("direction", ["from us", "from stock"])
def test_200_parallel_requests_lose_none(town: Town, direction: str) -> None:
    server, client, host = (
        (town.mesh, town.stock, "mesh") if direction == "from us" else (town.stock, town.mesh, "stock")
    )
    directory = town.bed.files(server.host, f"hello from {host}\n")
    digests = {i: random_file(directory / f"part-{i}", 10_000 + 37 * i) for i in range(1, 201)}
    out = client.host.folder / f"parallel-{host}"
    done = client.host.run(
        *["curl", "-sS", "-Z", "--parallel-immediate", "--parallel-max", "200", "--max-time", "60"],
        *client.curl_words(),
        *["--create-dirs", "-o", f"{out}/#1", "-w", "%{http_code}\\n", f"http://{host}/part-[1-200]"],
        timeout_s=70,
        check=False,
    )
    assert done.stdout.split() == ["200"] * 200, done.stderr[-2000:]
    assert {i: sha256_of(out / str(i)) for i in digests} == digests
