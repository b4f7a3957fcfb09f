"""The templates of the board, as every page and picture of it is made from them."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def site_environment() -> Environment:
    """Templates in ``ledger/site``: what is put in is escaped, and a name that nobody gave is an error."""
    return Environment(
        loader=PackageLoader("hpm_robustbench.ledger", "site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
