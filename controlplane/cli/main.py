"""Entry of the `stairwell` command: the global options, the subcommands, and usage errors."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from controlplane.cli.commands import (
    bundle,
    cluster,
    demo,
    disk,
    doctor,
    fleet,
    health,
    instance,
    pki,
    replacement,
    serial,
    top,
    trace,
    vcr,
)
from controlplane.cli.credentials import Credentials
from controlplane.cli.settings import DEFAULT_PORT, DEFAULT_SERVER, Output, Settings
from stairlib import native

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="stairwell",
    help="Machines whose disks are kept three times, and the live replacement of a replica.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stairwell {importlib.metadata.version('stairwell')}")
        print(f"frame loop {native.describe()}")
        raise typer.Exit(0)


def _tls(flag: str, text: str) -> Any:
    """The option of one file, also taken from the environment."""
    variable = "STAIRWELL_" + flag.strip("-").replace("-", "_").upper()
    return typer.Option(flag, metavar="FILE", envvar=variable, help=text)


@app.callback()
def _global_options(
    context: typer.Context,
    server: Annotated[
        str,
        typer.Option("--server", "-s", envvar="STAIRWELL_SERVER", help="Control plane's host."),
    ] = DEFAULT_SERVER,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            envvar="STAIRWELL_PORT",
            min=1,
            max=65535,
            help=f"Its port.  [default: {DEFAULT_PORT}]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", help="How to print; json is for programs.")
    ] = Output.HUMAN,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.001, help="Seconds one call may take.  [default: 30]"),
    ] = None,
    tls_ca: Annotated[
        str | None, _tls("--tls-ca", "The authority that the control plane's certificate is of.")
    ] = None,
    tls_cert: Annotated[str | None, _tls("--tls-cert", "Your certificate.")] = None,
    tls_key: Annotated[str | None, _tls("--tls-key", "Its private key.")] = None,
    token_file: Annotated[
        str | None, _tls("--token-file", "A bearer token, instead of certificate and key.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", envvar="STAIRWELL_INSECURE", help="Plain text to another host too."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Machines whose disks are kept three times, and the live replacement of a replica."""
    del version
    credentials = Credentials(tls_ca, tls_cert, tls_key, token_file, insecure)
    context.obj = Settings(server, port, output, timeout, debug, credentials)


instance.add_to(app)
serial.add_to(app)
disk.add_to(app)
vcr.add_to(app)
replacement.add_to(app)
trace.add_to(app)
bundle.add_to(app)
fleet.add_to(app)
health.add_to(app)
top.add_to(app)
pki.add_to(app)
doctor.add_to(app)
cluster.add_to(app)
demo.add_to(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; never raises for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = app(arguments, prog_name="stairwell", standalone_mode=False)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        # typer's usage errors have no public base class in every supported version.
        if not hasattr(error, "format_message"):
            raise
        return _usage(error)
    return result if isinstance(result, int) else 0


def _usage(error: Exception) -> int:
    """Prints a usage error as one message with the help to ask for."""
    text = str(error.format_message()).replace("Value error, ", "")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "stairwell")
    if text:
        print(f"error: {text}\nhint: see `{path} --help`", file=sys.stderr)
    elif context is not None:
        print(context.get_help())
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
