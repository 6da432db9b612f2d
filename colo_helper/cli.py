"""``colo-helper``: the program on the hosts. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    if sys.argv[1:2] == ["attach"]:  # before argparse: a second of start-up is a second without protection
        from colo_helper.channel import attach  # noqa: PLC0415

        return attach.main(sys.argv[2:])
    from colo_helper.commands import dispatch  # noqa: PLC0415

    return dispatch(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
