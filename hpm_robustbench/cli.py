"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from hpm_robustbench.commands.card import card
from hpm_robustbench.commands.finetune import finetune
from hpm_robustbench.commands.leaderboard import leaderboard
from hpm_robustbench.commands.models import list_models, show
from hpm_robustbench.commands.push import push
from hpm_robustbench.commands.run import run
from hpm_robustbench.commands.status import doctor, status
from hpm_robustbench.commands.weights import weights
from hpm_robustbench.errors import HpmBenchError, StorageProblem, printable

_INTERRUPTED, _TERMINATED = 130, 75


class _Terminated(BaseException):
    """SIGTERM arrived."""


@click.group(context_settings={"auto_envvar_prefix": "HPM_BENCH", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpm-robustbench")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
def cli(quiet: bool) -> None:
    """Trustworthy evaluation of robust image classifiers, with and without HPM."""
    level = logging.ERROR if quiet else logging.INFO
    told = logging.StreamHandler(sys.stderr)
    told.setLevel(level)
    told.addFilter(lambda record: record.name.startswith("hpm_robustbench") or record.levelno >= logging.WARNING)
    logging.basicConfig(handlers=[told], format="%(message)s", level=level)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own, and would say all twice
    if quiet:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when that handler is made
    if not sys.warnoptions and quiet:
        logging.captureWarnings(True)


for command in (run, finetune, push, list_models, show, status, doctor, leaderboard, weights, card):
    cli.add_command(command)


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leave with the exit code that the outcome stands for."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    resume = "Run the same command again to continue: every finished step is kept."
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = cli.main(args=given, obj=given, standalone_mode=False) or 0
    except HpmBenchError as error:
        code = _say(f"error: {error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _say(f"interrupted. {resume}", _INTERRUPTED)
    except _Terminated:
        code = _say(f"terminated. {resume}", _TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _say(f"error: {_refused(error)}", StorageProblem.exit_code)
    sys.exit(code)


def _refused(error: OSError) -> StorageProblem:
    """What nobody expected of a path: too long, not allowed, on a disk that has gone."""
    path = str(error.filename or "a file")
    return StorageProblem(
        wanted="paths that can be read and written",
        got=f"{error.strerror or type(error).__name__} at {path[:80]}{'...' if len(path) > 80 else ''}",
        next_step="look at the paths of the command; what is written already is intact",
    )


def _say(message: str, code: int) -> int:
    click.echo("\n".join(map(printable, message.splitlines())), err=True)  # it may hold words of others
    return code
