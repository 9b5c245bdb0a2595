"""The path prefix of a server behind a proxy."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class PrefixMiddleware:
    """Strips the prefix from paths if the proxy has kept it, so that everything behind this sees one form of a path.
    Other paths are left as they are: the proxy has stripped the prefix, or the request bypassed it."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent, mounted = scope["path"], scope.get("root_path", "").rstrip("/")  # mounted in another app
        path = _without(self._root_path, _without(mounted, sent))
        home = sent or mounted or self._root_path
        # In place, because outer middleware reads the path from the scope.
        scope["path"], scope["root_path"] = path or "/", ""
        if not path and home and scope["method"] in ("GET", "HEAD"):
            # The page's links are relative: without the trailing slash they would resolve one level too high.
            await RedirectResponse(f"{home}/", 308)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _without(prefix: str, path: str) -> str:
    return path[len(prefix) :] if prefix and f"{path}/".startswith(f"{prefix}/") else path
