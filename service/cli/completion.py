"""`hitl completion`: what makes a shell complete commands, options and their values."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete `hitl`. For bash, in ~/.bashrc:

    \b
        eval "$(hitl completion bash)"
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "hitl", "_HITL_COMPLETE").source())
