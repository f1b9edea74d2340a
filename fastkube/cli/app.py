"""The `fastkube` command: one subcommand per part, each imported only when it is asked for (start-up time is a feature).

A part's module holds a typer function `command`. Flags follow upstream's manners: `--flag value`, `--flag=value`, and for booleans also
`--flag=true` and `--flag=false`; an unknown flag is an error (exit 2).
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

PARTS = {
    "up": ("fastkube.cli.up", "Run a whole cluster in the foreground."),
    "down": ("fastkube.cli.down", "Remove everything that `fastkube up` made outside its data directory."),
    "etcd": ("fastkube.cli.etcd", "Run the store behind etcd's API."),
    "apiserver": ("fastkube.cli.apiserver", "Run the API server with its store."),
    "controller-manager": ("fastkube.cli.controller_manager", "Run the controllers."),
    "scheduler": ("fastkube.cli.scheduler", "Run the scheduler."),
    "kubelet": ("fastkube.cli.kubelet", "Run the node agent."),
    "hollow": ("fastkube.cli.hollow", "Run simulated nodes."),
    "proxy": ("fastkube.cli.proxy", "Run the service proxy."),
    "dns": ("fastkube.cli.dns", "Run the cluster's DNS."),
    "version": ("fastkube.cli.version", "Print the version."),
}


class UpstreamCommand(TyperCommand):
    """Understands `--flag=true|false` for boolean flags, as Go's flag package does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        switches = {opt: p for p in self.params if getattr(p, "is_flag", False) for opt in p.opts}
        out: list[str] = []
        for i, arg in enumerate(args):
            name, eq, value = arg.partition("=")
            if arg == "--":
                out += args[i:]
                break
            if eq and name in switches and value.lower() in ("true", "false", "1", "0", "t", "f"):
                on = value.lower() in ("true", "1", "t")
                out += [name] if on else switches[name].secondary_opts[:1]
            else:
                out.append(arg)
        return super().parse_args(ctx, out)


class Parts(TyperGroup):
    """Finds a subcommand by importing its module."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(PARTS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in PARTS:
            return None
        module, summary = PARTS[cmd_name]
        part = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        part.command(cmd_name, cls=UpstreamCommand, short_help=summary)(importlib.import_module(module).command)
        return typer.main.get_command(part)


app = typer.Typer(
    cls=Parts, add_completion=False, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False
)


@app.callback()
def root() -> None:
    """A complete Kubernetes: control plane, store and node agent."""


def main() -> None:
    """Entry point of the console script. SIGTERM before a part serves (and takes the signal over) is a clean end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
