"""Commands on stdin, one a line, read by `sky` itself, in an environment that has it; on stdout, as JSON, what its
answers hold and which states are ends. Nothing is started."""

import json
import sys

import click
from sky.client.cli.command import cli
from sky.jobs.state import ManagedJobStatus
from sky.schemas.api.responses import ClusterJobRecord, ManagedJobRecord, StatusResponse
from sky.skylet.job_lib import JobStatus


def parse(words: list[str]) -> None:
    """Raises `click.UsageError` for options and words that there are not."""
    command: click.Command = cli
    context = click.Context(cli, info_name="sky")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
        context = click.Context(command, parent=context, info_name=name)
    _, left, _ = command.make_parser(context).parse_args(words)
    assert not left, left


for line in sys.stdin.read().splitlines():
    parse(line.split()[1:])
answers = {"jobs": ManagedJobRecord, "cluster jobs": ClusterJobRecord, "clusters": StatusResponse}
print(
    json.dumps(
        {
            "answers": {name: sorted(model.model_fields) for name, model in answers.items()},
            "jobs": {one.value: one.is_terminal() for one in ManagedJobStatus},
            "cluster jobs": {one.value: one.is_terminal() for one in JobStatus},
        }
    )
)
