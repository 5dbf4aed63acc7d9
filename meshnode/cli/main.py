"""The command line: one parser per command, built only for the command that was asked for.

Options of `up` come from the fields of `config.model`. Every error is one line on stderr and its own
exit code (docs/reference/errors.md); `--debug` adds the traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NoReturn

from meshnode.base.errors import ConfigError, MeshError
from meshnode.config.model import Secret, default_of, key_of, settings

USAGE_EXIT: Final = 2
BUG_EXIT: Final = 70
SIGINT_EXIT: Final = 130


class UsageError(ConfigError):
    """The words of the command line do not fit."""


class _Parser(argparse.ArgumentParser):
    """One line for a misuse instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True, slots=True)
class Command:
    """A word after `meshnode`."""

    help: str
    run: str
    """module:function, called with the parsed arguments; returns the exit code."""
    arguments: Callable[[argparse.ArgumentParser], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("MESHNODE_DEBUG"))
    try:
        return _run(words)
    except MeshError as error:
        if debug:
            import traceback

            traceback.print_exc()
        _complain(str(error))
        return exit_code_of(error)
    except KeyboardInterrupt:
        return SIGINT_EXIT
    except BrokenPipeError:
        # Whoever read our output has enough: end as other tools do, without a second complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        _complain(f"a bug of meshnode, {type(error).__name__}: {error}; please report it with what --debug shows")
        return BUG_EXIT


def exit_code_of(error: MeshError) -> int:
    """The exit code of an error: that of its cause, if the cause says more (`NotReady`)."""
    cause = error.__cause__
    return cause.exit_code if isinstance(cause, MeshError) else error.exit_code


def _complain(message: str) -> None:
    from meshnode.run.log import redact

    print("meshnode: " + redact(message).replace("\n", " "), file=sys.stderr)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else USAGE_EXIT
    if words[0] in ("-V", "--version"):
        words[0] = "version"
    command = COMMANDS.get(words[0])
    if command is None:
        import difflib

        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        tip = f"did you mean {close[0]}?" if close else "see meshnode --help"
        raise UsageError(f"no command {words[0]!r}; {tip}")
    parser = _Parser(prog=f"meshnode {words[0]}", description=command.help, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    command.arguments(parser)
    parsed = parser.parse_args(words[1:])
    module, _, function = command.run.partition(":")
    run: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
    return run(parsed)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "usage: meshnode COMMAND [OPTION]…\n\n" + "\n".join(lines) + "\n\nmeshnode COMMAND --help shows the options."


# --- arguments --------------------------------------------------------------------------------------


def _up(parser: argparse.ArgumentParser) -> None:
    _node(parser, without=())
    parser.add_argument(
        "--wireguard",
        metavar="FILE",
        help="a plain WireGuard network, as wg-quick's file says, in the place of a tailnet",
    )


def _node(parser: argparse.ArgumentParser, *, without: tuple[str, ...]) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", help="TOML file with the same settings")
    parser.add_argument("--network", metavar="NAME", help="which of the file's networks")
    for _, item in settings():
        if item.metadata["flag"] and item.name not in without:
            _add_setting(parser, item)


def _add_setting(parser: argparse.ArgumentParser, item: Any, flag: str = "") -> None:
    about, default = item.metadata, default_of(item)
    flag = flag or "--" + item.name.replace("_", "-")
    shown = "" if isinstance(default, Secret) or default in ("", (), False) else f" (default {default})"
    unit = f" [{about['unit']}]" if about["unit"] else ""
    text = (about["help"] + unit + shown).replace("%", "%%")
    if isinstance(default, bool):
        parser.add_argument(flag, dest=item.name, action="store_true", default=None, help=text)
    elif isinstance(default, tuple):
        parser.add_argument(flag, dest=item.name, action="append", default=None, metavar=about["metavar"], help=text)
    elif about["choices"]:
        parser.add_argument(flag, dest=item.name, default=None, metavar="|".join(about["choices"]), help=text)
    else:
        parser.add_argument(flag, dest=item.name, default=None, metavar=about["metavar"], help=text)


def _door(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-dir", metavar="D|mem:", help="state directory of the running node")
    parser.add_argument("--network", metavar="NAME", help="network whose default state directory is meant")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _status(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    _json(parser)
    parser.add_argument(
        "-w", "--watch", nargs="?", type=float, const=1.0, metavar="S", help="a live table, every S seconds (default 1)"
    )


def _ping(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    _json(parser)
    parser.add_argument("peer", metavar="PEER", help="name or tailnet address")
    parser.add_argument("-c", "--count", type=int, default=None, metavar="N", help="pings to send (default 1)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="wait for each pong (default 5)")
    parser.add_argument(
        "--until-direct", action="store_true", help="ping until a direct pong, at most N times (default 10)"
    )
    parser.add_argument(
        "--require-direct",
        action="store_true",
        help="a pong by relay counts for nothing: end with 42 if none is direct",
    )
    parser.add_argument("--icmp", action="store_true", help="an ICMP echo inside the tunnel, which rules must allow")
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        metavar="BYTES",
        help="of the packet on the wire, to see whether the path carries it; with --icmp what the echo carries (56)",
    )


def _netcheck(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    _json(parser)
    parser.add_argument("--timeout", type=float, default=15.0, metavar="S", help="wait for the report (default 15)")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--derp-map",
        metavar="FILE|URL",
        help="look without a node, at the relays of this map: JSON or YAML, as Tailscale and Headscale have it",
    )
    alone.add_argument("--relay", metavar="HOST[:PORT]", help="look without a node, at this relay alone")
    parser.add_argument(
        "--ca-file", metavar="FILE", help="without a node: certificate authorities to trust beside the system's"
    )


def _ip(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", dest="only4", action="store_true", help="IPv4 only")
    family.add_argument("-6", dest="only6", action="store_true", help="IPv6 only")
    parser.add_argument("peer", metavar="PEER", nargs="?", help="a peer's addresses instead of ours")


def _whois(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    _json(parser)
    parser.add_argument("address", metavar="ADDRESS", help="tailnet address, with or without port")


def _nc(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("port", metavar="PORT", type=int)
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="give up connecting (default 10)")


def _dns(parser: argparse.ArgumentParser) -> None:
    _door(parser)
    _json(parser)
    parser.add_argument("name", metavar="NAME", help="short or full name of a node")


def _capability(parser: argparse.ArgumentParser) -> None:
    _node(parser, without=("port", "serve"))
    parser.add_argument(
        "--port", dest="http_port", type=int, default=3001, metavar="N", help="tailnet port to serve on (default 3001)"
    )
    parser.add_argument("--spec", required=True, metavar="FILE", help="TOML file with the capabilities")
    parser.add_argument(
        "--token",
        default="env:CAPABILITY_TOKEN",
        metavar="T",
        help="bearer token: env:NAME, file:PATH or the token itself (default env:CAPABILITY_TOKEN)",
    )


def _derp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", help="TOML file with the same settings, in [derp]")
    parser.add_argument("--network", metavar="NAME", help="which of the file's networks")
    for section, item in settings():
        if section == "derp" and item.name != "derp":
            _add_setting(parser, item, flag="--" + key_of(item).replace("_", "-"))
        elif section == "run" and item.name in ("log", "log_level"):
            _add_setting(parser, item)
    parser.add_argument("--check", metavar="HOST[:PORT]", help="look at a relay from outside, and say what to mend")
    parser.add_argument("--pin", metavar="sha256-raw:HEX", help="with --check: the certificate that the relay map pins")
    _json(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="leave it running and print how to use it")


COMMANDS: Final[dict[str, Command]] = {
    "up": Command("join a tailnet and stay in the foreground", "meshnode.cli.up:run_up", _up),
    "status": Command("what the running node knows", "meshnode.cli.commands:run_status", _status),
    "metrics": Command("numbers for Prometheus", "meshnode.cli.commands:run_metrics", _door),
    "ping": Command("reach a peer and show by which way", "meshnode.cli.commands:run_ping", _ping),
    "netcheck": Command("what the network lets a node do", "meshnode.cli.netcheck:run_netcheck", _netcheck),
    "ip": Command("tailnet addresses of this node or a peer", "meshnode.cli.commands:run_ip", _ip),
    "whois": Command("who a tailnet address belongs to", "meshnode.cli.commands:run_whois", _whois),
    "nc": Command("connect stdin and stdout to a tailnet port", "meshnode.cli.commands:run_nc", _nc),
    "dns": Command("addresses of a name of the tailnet", "meshnode.cli.commands:run_dns", _dns),
    "logout": Command("leave the tailnet and stop the running node", "meshnode.cli.commands:run_logout", _door),
    "capability": Command("serve fixed commands over HTTP", "meshnode.cli.up:run_capability", _capability),
    "derp": Command("run a relay", "meshnode.cli.derp:run_derp", _derp),
    "demo": Command("two nodes, a relay and a control server here", "meshnode.demo:run_demo", _demo),
    "version": Command("print the version", "meshnode.cli.commands:run_version", _json),
}


if __name__ == "__main__":
    sys.exit(main())
