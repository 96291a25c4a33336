"""Names of learners and data files: which a run may have, and how they and other texts are shown."""

MOST = 255  # characters
RULE = f"a name has 1 to {MOST} characters that can be printed, and no /"


def is_name(text):
    """Whether RULE holds: a run takes no other name, and a report counts no run with another."""
    return isinstance(text, str) and 0 < len(text) <= MOST and text.isprintable() and "/" not in text


def readable(text):
    """The text with what cannot be printed, or not be encoded, as Python writes it: "\\\\n", "\\\\ud800"."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def said(data_file):
    """A data file's name as one says it: rotations for mnist_rotations.pt."""
    return without_ending(data_file).removeprefix("mnist_")


def without_ending(data_file):
    return data_file.removesuffix(".pt").removesuffix(".npz") or data_file
