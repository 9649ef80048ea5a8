"""The `downstaird` command: makes, serves and checks regions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from downstaird.arguments import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_EXTENT_COUNT,
    DEFAULT_EXTENT_SIZE,
    parser,
)
from downstaird.config import (
    CloneOptions,
    CreateOptions,
    RunOptions,
    checked_cipher,
    checked_geometry,
    checked_uuid,
    wrong,
)
from downstaird.core.clone_plan import Expected
from downstaird.faults import FaultPlan
from stairlib.model.errors import StairwellError
from stairlib.rpc.flags import DAEMON_VARIABLES, call_rate
from stairlib.runtime.addresses import MAX_PORT, Address, parse_address

if TYPE_CHECKING:
    from stairlib.model.settings import Setting
    from stairlib.rpc.tls import TlsFiles

# By the destinations of its flags.
_TLS_VARIABLES = dict(zip(("cert_pem", "key_pem", "root_cert_pem"), DAEMON_VARIABLES, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 when it did what was asked, 1 with a sentence on stderr when not."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(words, argparse.Namespace(words=words))
    try:
        return _dispatch(options)
    except StairwellError as error:
        print(f"downstaird: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(options: argparse.Namespace) -> int:
    # Each command is imported when it is wanted: `run` needs gRPC, which takes its time.
    if options.command == "create":
        from downstaird.commands.create import create

        if options.clone_source is not None:
            return _clone(options)
        return create(_create_options(options), options.import_path)
    if options.command == "run":
        from downstaird.commands.run import run

        return run(_run_options(options), level=options.log_level, log_format=options.log_format)
    if options.command == "agent":
        return _agent(options)
    if options.command == "clone":
        return _clone(options)
    if options.command == "verify":
        from downstaird.commands.verify import verify

        return verify(options.data, threads=options.threads, output=options.output)
    if options.command == "info":
        from downstaird.commands.info import info

        return info(options.data, output=options.output, since=options.since)
    if options.command == "dump":
        return _dump(options)
    if options.command == "export":
        from downstaird.commands.export_data import export_file

        return export_file(options.data, options.to, skip=options.skip, count=options.count)
    if options.command == "import":
        from downstaird.commands.import_data import import_file

        return import_file(options.data, options.source)
    if options.command == "forget-key":
        from downstaird.commands.forget_key import forget_key

        return forget_key(options.data)
    if options.command == "snapshot":
        return _snapshot(options)
    from downstaird.commands.version import version

    return version()


def _agent(options: argparse.Namespace) -> int:
    # Children only ever exec: gRPC's own fork handlers would do nothing but write a line for each.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from downstaird.agent.arguments import agent_options
    from downstaird.agent.start import run

    agent = agent_options(options, _tls_files(options, server=True), _settings(options))
    return run(agent, level=options.log_level, log_format=options.log_format)


def _clone(options: argparse.Namespace) -> int:
    from downstaird.commands.clone import clone

    return clone(_clone_options(options))


def _snapshot(options: argparse.Namespace) -> int:
    from downstaird.commands import snapshot

    if options.action == "list":
        return snapshot.list_all(options.data, output=options.output)
    if options.action == "create":
        return snapshot.create(options.data, options.name)
    if options.action == "delete":
        return snapshot.delete(options.data, options.name)
    wanted = checked_uuid(options.uuid, "--uuid")
    return snapshot.clone(options.data, options.name, options.to, wanted)


def _dump(options: argparse.Namespace) -> int:
    from downstaird.commands.dump import DIRECTORIES_MAX, Dump, dump

    if len(options.data) > DIRECTORIES_MAX:
        raise wrong(
            "--data", f"may be given up to {DIRECTORIES_MAX} times, not {len(options.data)}"
        )
    wanted = Dump(
        directories=options.data,
        extent=options.extent,
        block=options.block,
        only_differences=options.only_show_differences,
        json=options.output == "json",
    )
    return dump(wanted)


def _create_options(options: argparse.Namespace) -> CreateOptions:
    return CreateOptions(
        directory=options.data,
        id=checked_uuid(options.uuid, "--uuid"),
        geometry=checked_geometry(
            DEFAULT_BLOCK_SIZE if options.block_size is None else options.block_size,
            DEFAULT_EXTENT_SIZE if options.extent_size is None else options.extent_size,
            DEFAULT_EXTENT_COUNT if options.extent_count is None else options.extent_count,
        ),
        cipher=checked_cipher(options.cipher, encrypted=options.encrypted),
    )


def _clone_options(options: argparse.Namespace) -> CloneOptions:
    return CloneOptions(
        directory=options.data,
        id=checked_uuid(options.uuid, "--uuid"),
        source=str(parse_address(options.clone_source or options.source)),
        expected=Expected(
            options.block_size,
            options.extent_size,
            options.extent_count,
            options.encrypted or None,
        ),
        tls=_tls_files(options, server=False),
    )


def _run_options(options: argparse.Namespace) -> RunOptions:
    for port, flag in ((options.port, "--port"), (options.data_port or 0, "--data-port")):
        if not 0 <= port <= MAX_PORT:
            raise wrong(flag, f"must be from 0 to {MAX_PORT}, not {port}")
    if options.snapshot and options.create:
        raise wrong("--snapshot", "is of a region that is there: leave out --create")
    if options.latency < 0:
        raise wrong("--latency", "must not be negative")
    for kind in ("read", "write", "flush"):
        if not 0 <= getattr(options, f"{kind}_errors") <= 1:
            raise wrong(f"--{kind}-errors", "must be a probability from 0 to 1")
    tls = _tls_files(options, server=True)
    return RunOptions(
        directory=options.data,
        address=_listens(options, tls),
        data_port=options.data_port,
        advertise=options.advertise,
        read_only=options.mode == "ro" or bool(options.snapshot),
        faults=FaultPlan(
            lossy=options.lossy,
            read_errors=options.read_errors,
            write_errors=options.write_errors,
            flush_errors=options.flush_errors,
            latency_seconds=options.latency / 1000,
        ),
        create=_create_options(options) if options.create else None,
        tls=tls,
        insecure=options.insecure,
        snapshot=options.snapshot or "",
        metrics=_metrics_address(options),
        settings=_settings(options),
        calls=call_rate(options),
    )


def _settings(options: argparse.Namespace) -> tuple[Setting, ...]:
    """What is in effect, without secrets."""
    from stairlib.runtime.command_line import (
        TELEMETRY_VARIABLES,
        command_line_settings,
        variable_settings,
    )

    return (
        *command_line_settings(parser, options.words, os.environ, _TLS_VARIABLES),
        *variable_settings(os.environ, TELEMETRY_VARIABLES),
    )


def _tls_files(options: argparse.Namespace, *, server: bool) -> TlsFiles | None:
    """The files, if any, that will do: said before a region is made or locked for them."""
    from stairlib.rpc.flags import daemon_files
    from stairlib.rpc.tls import FLAGS

    files = daemon_files((options.cert_pem, options.key_pem, options.root_cert_pem), FLAGS)
    if files is not None:
        files.check(server=server)
    return files


def _metrics_address(options: argparse.Namespace) -> str:
    """Where metrics are read; InvalidRequestError where that would be from other hosts."""
    from stairlib.rpc.gate import require_private

    if options.metrics and not options.insecure:
        require_private(options.metrics, "serving metrics", tls=False)
    return str(options.metrics)


def _listens(options: argparse.Namespace, tls: TlsFiles | None) -> Address:
    """Where to; InvalidRequestError where plain text would go over a network."""
    from stairlib.rpc.gate import require_private

    everywhere = tls is not None or options.insecure
    host = options.address or ("0.0.0.0" if everywhere else "127.0.0.1")
    address = Address(host.strip("[]"), options.port)
    if not everywhere:
        require_private(str(address), "listening")
    return address


if __name__ == "__main__":
    sys.exit(main())
