"""nginx as a reverse proxy before a relay or a control server: it passes WebSocket, and strips every other upgrade.

`nginx_words` writes a configuration and returns the command, for a host or for loopback; Front runs one on a host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interop.certs import Authority
from interop.lab import Host
from interop.process import Process

PORT = 443
READY_S = 15.0
HEAD = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""
"""How every nginx of a lab begins: in the foreground, with everything it writes in one folder."""
CONFIG = (
    HEAD
    + """    map $http_upgrade $passed {{ default ""; "~*^websocket$" websocket; }}
    map $passed $kept {{ default upgrade; "" close; }}
    server {{
        listen {address}:{port}{tls};
        location / {{
            proxy_pass {backend};
            proxy_ssl_verify off;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $passed;
            proxy_set_header Connection $kept;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""
)


def nginx_words(
    folder: Path, address: str, port: int, backend: str, certificate: tuple[Path, Path] | None = None
) -> list[str]:
    """An nginx before `backend`, a URL; its log is `folder`/access."""
    tls = f" ssl; ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]}" if certificate else ""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, address=address, port=port, backend=backend, tls=tls))
    return ["nginx", "-c", str(config), "-e", str(folder / "error.log")]


@dataclass
class Front:
    """One nginx on `host`, in the place of the server at `address`, for which it has the authority's certificate."""

    host: Host
    address: str
    authority: Authority
    process: Process | None = None

    def start(self) -> Front:
        folder = self.host.folder / "nginx"
        folder.mkdir(exist_ok=True)
        certificate = self.authority.issue("front", self.address)
        words = nginx_words(folder, self.host.v4, PORT, f"https://{self.address}:{PORT}", certificate)
        self.process = self.host.start("nginx", words)
        self.process.wait_until(self._answers, READY_S, "nginx passes what the server says")
        return self

    def requests(self) -> str:
        """Its access log so far; a WebSocket's line comes at its end."""
        return (self.host.folder / "nginx" / "access").read_text(errors="replace")

    def _answers(self) -> bool:
        url = f"https://{self.host.v4}:{PORT}/generate_204"
        done = self.host.run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)
        return done.stdout.strip() not in ("", "000", "502")
