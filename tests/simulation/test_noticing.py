"""The simulation notices when a mechanism of the services is left out."""

from __future__ import annotations


#: Of each mutation: a schedule that it breaks, and the promise.
