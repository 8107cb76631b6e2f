"""Tests of Triton kernels in Triton's interpreter, collected only where that is what runs them.

Triton reads TRITON_INTERPRET where a kernel is defined, its own library's included, so it must be set before anything
imports Triton; and vLLM, which other tests import, replaces a Triton that has no driver by a stub. So
`tests/mtgr/kernels/test_interpreted.py` runs these in a process of their own.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
