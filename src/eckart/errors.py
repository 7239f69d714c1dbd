"""The one exception that a user's mistake raises: a sentence that names the thing and the way out."""


class EckartError(Exception):
    """A mistake in what was asked for or in a file, told in one sentence.

    The command line prints it without a traceback and exits with ``exit_code``.

    >>> raise EckartError("--keep is 1.5: give a fraction above 0 and at most 1")
    Traceback (most recent call last):
    eckart.errors.EckartError: --keep is 1.5: give a fraction above 0 and at most 1
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    r"""What another library's error says, in one line.

    >>> first_line(ValueError("no such file\nand much more")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


class VerificationError(EckartError):
    """A recorded figure or hash does not hold."""

    exit_code = 1
