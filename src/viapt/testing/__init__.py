"""The contract: what every prompt method must keep on every backbone, for methods of your own too.

    from viapt.testing import check_prompt_method, tiny_backbones

    for build in tiny_backbones().values():
        check_prompt_method(MyMethod, build(), num_prompts=4)

`CHECKS` take a second or two together on a tiny backbone; `COMPILED_CHECKS` trace and compile, in a process without
run-time shape checks (a decorated function breaks a graph). A check takes a `Subject` and raises AssertionError.
"""

from __future__ import annotations

from typing import Any

from viapt.backbones.base import Backbone
from viapt.methods.base import PromptMethod
from viapt.testing.checks import CHECKS, COMPILED_CHECKS, Check
from viapt.testing.subject import Subject, tiny_backbones

__all__ = ["CHECKS", "COMPILED_CHECKS", "Check", "Subject", "check_prompt_method", "tiny_backbones"]


def check_prompt_method(
    method: str | type[PromptMethod], backbone: Backbone, *, checks: dict[str, Check] | None = None, **options: Any
) -> None:
    """Run the contract.

    Args:
        method: a class, or the name of a method that is known.
        backbone: small, and in float32; left as it is.
        checks: `CHECKS` (the default) or `COMPILED_CHECKS`.
        options: keyword arguments of the method.

    Raises:
        AssertionError: of the first check that fails, with a note that names it.
    """
    subject = Subject(method, backbone, **options)
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            check(subject)
        except Exception as error:
            error.add_note(f"contract check {name!r}, method {subject.method.name!r}, options {options}")
            raise
