"""The one exception that speaks to the user."""


class UserError(ValueError):
    """Bad input. The message gives the value, the rule and the remedy; main prints it and exits with code 2."""
