"""NumPy headers that are no headers: text that NumPy evaluates as a Python literal, and must not trust."""

from __future__ import annotations

HEADERS = {
    "more rows than there are numbers": f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**26},), }}",
    "no closing brace": "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), ",
    "a truth value for a shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (True,), }",
    "a list for a key": "{[]: 1}",
    "deeper than anybody nests": "(" * 150 + ")" * 150,
}


def array_file(header: str) -> bytes:
    """A .npy file of format 1.0 with this header, and one byte of content."""
    padded = header + " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + b"\x00"
