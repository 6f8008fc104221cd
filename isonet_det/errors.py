"""The one exception that this package raises for what a user can mend."""


class ISONetError(ValueError):
    """Wrong input: the message is one line that says what was expected, what was found and
    what to do. Command-line tools print it and exit with status 2."""

    def __init__(self, message: str) -> None:
        lines = message.splitlines()
        if lines and lines[0].startswith("Caught "):
            # From a data-loading process it arrives below that process' traceback.
            lines = [lines[-1].partition("Error: ")[2] or lines[-1]]
        # Somebody else's words in it may have line ends.
        super().__init__(" ".join(lines))
