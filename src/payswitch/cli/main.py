"""The command line: the whole system (`up`), one part in the foreground, or an operator's command
(`payswitch.cli.commands`)."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import uvloop
from click.core import ParameterSource

from payswitch.cli import terminal
from payswitch.errors import StartError
from payswitch.process import allow_many_open_files, yield_to_others
from payswitch.reasons import reason
from payswitch.settings import MOST_PROCESSORS, REMOVED, Settings, SettingsError
from payswitch.telemetry import logs
from payswitch.telemetry.shared_counts import leave_that_of_others, shared_by_processes

if TYPE_CHECKING:
    from payswitch.dispatch.arq_worker import ResilientWorker

logger = logging.getLogger(__name__)

PORT = click.IntRange(1, 65535)

_OF_LOGS = ("PAYSWITCH_LOG_LEVEL", "PAYSWITCH_LOG_FORMAT")


def _parse_mode(_: click.Context, __: click.Parameter, text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text, re.ASCII):
        raise click.BadParameter(f"{text!r} is no mode such as 660 or 666")
    return int(text, 8)


def _is_given(ctx: click.Context, option: str) -> bool:
    return ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE


def fail(message: str) -> NoReturn:
    """End the command with one line and exit code 1."""
    click.echo(f"payswitch: {message}", err=True)
    sys.exit(1)


def read_settings(part: str = "payswitch", environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings and set up logging by them; `part` names this process in JSON lines."""
    try:
        settings = Settings.from_environment(environment)
    except SettingsError as error:
        fail(str(error))
    logs.configure(settings.log_level, settings.log_format, part)
    if removed := [name for name in REMOVED if environment.get(name)]:
        logger.warning("no longer a setting: %(variables)s", {"variables": ", ".join(removed)})
    return settings


def _end(settings: Settings, message: str) -> NoReturn:
    """End a part with exit code 1 and one line, in JSON if its log is."""
    if settings.log_format == "json":
        logger.critical("can't go on: %(error)s", {"error": message})
        sys.exit(1)
    fail(message)


class _Misuse(click.UsageError):
    """A usage error that prints one line."""

    def show(self, file: Any = None) -> None:
        problem = " ".join(self.format_message().split()).rstrip(".")
        path = "payswitch" if self.ctx is None else self.ctx.command_path
        click.echo(f"payswitch: {problem} (see {path} --help)", file=file, err=True)


@contextlib.contextmanager
def _misuse_in_one_line() -> Iterator[None]:
    try:
        yield
    except (_Misuse, click.exceptions.NoArgsIsHelpError):
        raise
    except click.UsageError as error:
        raise _Misuse(error.format_message(), error.ctx) from None


class _Commands(click.Group):
    """The commands of this module, and others that are loaded only when called: their imports would
    cost every container memory."""

    _folder = str(Path(__file__).with_name("commands"))
    _elsewhere = frozenset(module.name for module in pkgutil.iter_modules([_folder]))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._elsewhere])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._elsewhere:
            return super().get_command(ctx, name)
        module = importlib.import_module(f"payswitch.cli.commands.{name}")
        command: click.Command = getattr(module, name)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        terminal.prepare()
        with terminal.one_line_if_output_is_full():
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _misuse_in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _misuse_in_one_line():
            return super().invoke(ctx)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="payswitch")
def main() -> None:
    """Payswitch takes payments over HTTP and pays each exactly once.

    Example: payswitch up
    """
    allow_many_open_files()
    leave_that_of_others()


@main.command()
@click.option("--host", default="127.0.0.1", help="The endpoint's address.")
@click.option("--port", default=9999, type=PORT, help="The endpoint's port.")
@click.option(
    "--ingress-port",
    default=9001,
    type=click.IntRange(1, 65534),
    help="The first ingress' port; the second has the next.",
)
@click.option("--default-port", default=8001, type=PORT, help="Simulator of `default`.")
@click.option("--fallback-port", default=8002, type=PORT, help="Simulator of `fallback`.")
@click.option(
    "--redis",
    default="single",
    type=click.Choice(["single", "cluster"]),
    help="One server, or a cluster of three primaries with a replica each.",
)
@click.option(
    "--redis-port", default=6379, type=PORT, help="A cluster also takes the 11 ports after it."
)
@click.option(
    "--processors",
    default=2,
    type=click.IntRange(1, MOST_PROCESSORS),
    help="Simulated processors: default, fallback, acme, which speaks charges, and others.",
)
@click.option("--workers", default=2, type=click.IntRange(1, 64), help="Payment workers.")
@click.option(
    "--state",
    default=".payswitch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what a restart goes on with.",
)
@click.option("--fresh", is_flag=True, help="Forget all payments first.")
@click.option(
    "--haproxy/--no-haproxy",
    default=True,
    show_default=False,
    help="Without it, or if there is none: Granian alone.",
)
def up(**options: Any) -> None:
    """Run the whole system on this machine until Ctrl-C.

    REDIS_URL, PAYMENT_PROCESSOR_URL_DEFAULT and PAYMENT_PROCESSOR_URL_FALLBACK name existing ones
    that are used instead. With none of them anyone may purge, unless PAYSWITCH_PURGE is set. If
    PAYSWITCH_PROCESSORS names the processors, each without a URL is simulated.

    Example: payswitch up --fresh
    """
    from payswitch.local.machine import MachineError
    from payswitch.local.supervisor import PartNotStartedError
    from payswitch.local.system import Options, run

    try:
        run(Options(**options))
    except (MachineError, SettingsError, PartNotStartedError) as error:
        fail(str(error))


@main.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=9001, type=PORT)
@click.option("--uds", type=click.Path(path_type=Path), help="Listen on this unix socket instead.")
@click.option(
    "--uds-mode",
    default="600",
    callback=_parse_mode,
    help="Who may connect to it, in octal; 666: every user.",
)
@click.option("--workers", default=1, type=click.IntRange(1, 64), help="Processes.")
@click.option(
    "--payments-port",
    type=PORT,
    help="A second port, for payments from a load balancer at less cost; for one process.",
)
@click.pass_context
def ingress(
    ctx: click.Context,
    host: str,
    port: int,
    uds: Path | None,
    uds_mode: int,
    workers: int,
    payments_port: int | None,
) -> None:
    """Run the HTTP ingress.

    Example: payswitch ingress --port 9001
    """
    if payments_port is not None and workers > 1:
        raise click.UsageError("--payments-port is for one process: leave out --workers")
    if payments_port == port and uds is None:
        raise click.UsageError("--payments-port must be another than --port")
    if uds is None and _is_given(ctx, "uds_mode"):
        raise click.UsageError("--uds-mode is for --uds")
    if uds is not None and _is_given(ctx, "port"):
        raise click.UsageError("--uds stands instead of --port: leave one of them out")
    if uds is not None and payments_port is None and _is_given(ctx, "host"):
        raise click.UsageError("--host is for --port and --payments-port, not for --uds")
    settings = read_settings("ingress")
    try:
        with shared_by_processes() if workers > 1 else contextlib.nullcontext():
            from payswitch.ingress import server

            place = server.Place(host, port, uds, uds_mode, payments_port)
            server.serve(settings, place, workers=workers)
    except (OSError, StartError) as error:
        _end(settings, reason(error))


@main.command()
def worker() -> None:
    """Run a payments worker; start as many as you like.

    Example: payswitch worker
    """
    settings = read_settings("worker")
    _check_workers(settings)
    from payswitch.dispatch.payment_worker import PaymentWorker
    from workers.payments import WorkerSettings

    _run(PaymentWorker, WorkerSettings, settings)


@main.command()
def health() -> None:
    """Run the health worker; more than one is harmless.

    Example: payswitch health
    """
    settings = read_settings("health")
    _check_workers(settings)
    from payswitch.dispatch.arq_worker import ResilientWorker
    from workers.health import WorkerSettings

    _run(ResilientWorker, WorkerSettings, settings)


def _check_workers(settings: Settings) -> None:
    from payswitch.local.machine import MachineError, check_workers

    try:
        check_workers()
    except MachineError as error:
        _end(settings, str(error))


def _run(worker_class: type[ResilientWorker], worker_settings: type, settings: Settings) -> None:
    if settings.workers_yield == "on":
        yield_to_others()
    from payswitch.dispatch.arq_worker import run_worker
    from payswitch.store.client import connect
    from payswitch.telemetry.metrics_server import check_address

    try:
        check_address(settings.metrics_host, settings.metrics_port)
        run_worker(
            worker_class,
            worker_settings,
            connect(settings.redis_url, limit_s=10, deployment=settings.deployment),
        )
    except (StartError, SettingsError) as error:
        _end(settings, str(error))


@main.command()
@click.option("--name", required=True, help="Its name in log lines.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", required=True, type=PORT)
@click.option("--fee", default="0.05", envvar="TRANSACTION_FEE", help="Its share.")
@click.option(
    "--protocol",
    default="rinha",
    type=click.Choice(["rinha", "charges"]),
    help="The protocol that it speaks.",
)
def simulator(name: str, host: str, port: int, fee: str, protocol: str) -> None:
    """Run a payment processor for development and tests. It reads the variables that the
    challenge's own processor reads, TRANSACTION_FEE, INITIAL_TOKEN and RATE_LIMIT_SECONDS, and
    PAYSWITCH_CURRENCY.

    Example: payswitch simulator --name default --port 8001 --fee 0.05
    """
    from payswitch.simulator.dialect import SimulatorConfig
    from payswitch.simulator.server import DIALECTS, serve

    # A processor uses only the settings of logs.
    log = read_settings(name, {each: os.environ.get(each, "") for each in _OF_LOGS})
    try:
        config = SimulatorConfig.from_environment(name, {**os.environ, "TRANSACTION_FEE": fee})
    except ValueError as error:
        fail(str(error))
    try:
        uvloop.run(serve(config, host, port, DIALECTS[protocol]))
    except OSError as error:
        _end(log, f"port {port}: {reason(error, host)}")
