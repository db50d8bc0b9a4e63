"""sqlite-utils' Database and Migrations, imported without pandas.

sqlite-utils imports pandas wherever it is installed, to know one more column type: 70 MB and half a second that no
command here has a use for.
"""

import sys

_OTHERS = "pandas" in sys.modules
if not _OTHERS:
    # an import of it now fails, as where it is not installed; typeshed has no None there, which Python's reference has
    sys.modules["pandas"] = None  # type: ignore[assignment]
try:
    from sqlite_utils import Database, Migrations
finally:
    if not _OTHERS:
        del sys.modules["pandas"]

__all__ = ["Database", "Migrations"]
