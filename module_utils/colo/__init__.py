"""What the colo_* modules share. Runs on hosts with the system's Python 3.11+ and its standard library only."""
