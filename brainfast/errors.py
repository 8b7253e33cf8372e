"""The one error that a user is meant to read."""

from __future__ import annotations


class BrainfastError(ValueError):
    """A mistake that the user can mend, told in one line: name, expected, got, remedy.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, name: str, *, expected: str, got: str, remedy: str | None = None) -> None:
        self.name = name
        self.expected = expected
        self.got = got
        self.remedy = remedy
        message = f"{name}: expected {expected}, got {got}"
        if remedy:
            message = f"{message}; {remedy}"
        super().__init__(" ".join(message.split()))

    def renamed(self, old: str, new: str) -> BrainfastError:
        """The same error with `old` in its name called `new`."""
        return BrainfastError(
            self.name.replace(old, new),
            expected=self.expected,
            got=self.got,
            remedy=self.remedy,
        )
