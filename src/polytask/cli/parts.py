"""What the commands share: the end of their help pages, and JSON for machines."""

from __future__ import annotations

import json
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinities become null."""
    from polytask.records import to_json

    click.echo(json.dumps(to_json(value), indent=1, allow_nan=False))


def examples(*lines: str) -> str:
    """Return the end of a help page. The mark \\b keeps click from joining the lines."""
    return "\n".join(
        ["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {x}" for x in lines)]
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
