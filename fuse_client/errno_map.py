"""The one place where errors of handlers become errnos.

A `WormError` knows its errno (wormfs/core/errors.py). Anything else that escapes a handler is a bug:
it is logged with its traceback and becomes EIO, for pyfuse3 ends the whole mount on any other error.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from wormfs.core.errors import WormError

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def answers_errno(
    handler: Callable[_Args, Coroutine[Any, Any, _Result]],
) -> Callable[_Args, Coroutine[Any, Any, _Result]]:
    """Make a handler raise nothing but `FUSEError`; an EIO's cause goes to the log."""
    name = handler.__name__

    @functools.wraps(handler)
    async def answer(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except WormError as error:
            if error.errno == errno.EIO:
                _log.warning("%s: EIO: %s: %s", name, type(error).__name__, error.message)
            else:
                _log.debug("%s%s: %s: %s", name, args[1:], type(error).__name__, error.message)
            raise FUSEError(error.errno) from None
        except Exception:
            _log.exception("%s: a bug in WormFS; answered EIO", name)
            raise FUSEError(errno.EIO) from None

    return answer
