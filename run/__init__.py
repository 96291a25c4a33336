"""One run: its flags, its life, and what it leaves."""

FORMAT = "mer-result/1"  # of the .json of a finished run
