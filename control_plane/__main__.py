"""`python -m control_plane`: runs a control plane; settings come from EVERSTEP_*."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from control_plane.server import serve
from control_plane.settings import ControlPlaneSettings
from everstep.errors import EverstepError
from everstep.rpc.logs import configure_logging


def main() -> int:
    """Exit code 0 after a clean stop, 2 when the control plane cannot start."""
    try:
        settings = ControlPlaneSettings()
        configure_logging(settings.log_format)
        asyncio.run(serve(settings))
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"error: EVERSTEP_{name}: {problem['msg']}", file=sys.stderr)
        return 2
    except EverstepError as error:
        print(f"error: {error.message} ({error.reason})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
