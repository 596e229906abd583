"""What importing Everstep costs, and whom."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import everstep
assert everstep.__version__
assert "grpc" not in sys.modules, "importing everstep imports gRPC"
from everstep import *
assert Client is everstep.Client
heavy = {"torch", "pandas", "numpy", "typer", "rich"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_everstep_is_light_and_the_client_not_heavy() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
