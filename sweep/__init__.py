"""Many runs of main.py: which, where, whether they are finished, and what became of them."""
