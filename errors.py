"""The one exception that speaks to the user; and what others say, for its messages."""


class UserError(ValueError):
    """Bad input. The message gives the value, the rule and the remedy; main prints it and exits with code 2."""


def text_of(error):
    """What an exception says; nothing where it fails at that, as a stranger's may."""
    try:
        return str(error)
    except Exception:
        return ""


def one_line(error, most=300, nothing="no message"):
    """What an exception says, in one line of so many characters at most; `nothing` where that is nothing."""
    return " ".join(text_of(error).split())[:most] or nothing
