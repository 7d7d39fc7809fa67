"""Whether the shapes and types in signatures are checked: by jaxtyping and beartype, unless SWINV2_TYPECHECK is 0."""

import importlib.util
import os

CHECKS_SIGNATURES = os.environ.get("SWINV2_TYPECHECK", "1") != "0" and importlib.util.find_spec("beartype") is not None
