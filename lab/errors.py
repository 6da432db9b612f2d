"""What the lab says when it cannot go on."""


class LabError(Exception):
    """A sentence that names the thing and the next step; the CLI prints it and exits 1."""
