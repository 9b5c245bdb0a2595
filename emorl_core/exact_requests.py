"""Builds validated requests for every text between weight vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emorl_core.asked import Messages
from emorl_core.engine.regions import MapRequest
from emorl_core.engine.segments import SegmentsRequest
from emorl_core.engine.sweep import grid_size
from emorl_core.errors import InvalidRequest, InvalidWeights
from emorl_core.requests import Requests, Weights, sampling_of
from emorl_core.types import check_width


class ExactRequests(Requests):
    """Adds requests for segments and maps."""

    def segments_request(
        self,
        prompt: str | None,
        from_weights: Weights,
        to_weights: Weights,
        *,
        messages: Messages | None = None,
        names: tuple[str, str] = ("from_weights", "to_weights"),
        min_width: float = 1e-7,
        normalize: bool = True,
        request_id: str | None = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        **limits: Any,
    ) -> SegmentsRequest:
        """A validated request, not yet started, for all greedy texts under (1 - t) from + t to, 0 <= t <= 1.

        prompt: a text, or None beside `messages`, a chat. Intervals of t narrower than `min_width` are not divided
        further. names: of the two vectors in errors; limits: further fields of `SegmentsRequest`. Raises as
        `request`.
        """
        sampling = (max_new_tokens, min_new_tokens, stop)
        corners = dict(zip(names, (from_weights, to_weights), strict=True))
        fields = self._exact_fields(prompt, messages, corners, min_width, normalize, request_id, sampling)
        return SegmentsRequest(**fields, **limits)

    def map_request(
        self,
        prompt: str | None = None,
        corners: Sequence[Weights] | None = None,
        *,
        messages: Messages | None = None,
        resolution: int = 20,
        max_points: int | None = None,
        min_width: float = 1e-7,
        normalize: bool = True,
        request_id: str | None = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        **limits: Any,
    ) -> MapRequest:
        """A validated request, not yet started, for all greedy texts of every mix of three weight vectors.

        prompt: a text, or None beside `messages`, a chat. corners: the three; None: each objective of the bundle alone.
        resolution: of the grid to fall back to when the exact map exceeds its limits; max_points: most points of that
        grid, counted before anything is allocated. Polygons narrower than `min_width` are not divided further. limits:
        further fields of `MapRequest`. Raises as `request`.
        """
        size = grid_size(3, resolution)
        if max_points is not None and size > max_points:
            raise InvalidRequest(
                f"resolution is {resolution}, a grid of {size} points; allowed: up to {max_points} (max_sweep)",
                param="resolution",
            )
        named = {f"corners.{i}": corner for i, corner in enumerate(self._three(corners))}
        sampling = (max_new_tokens, min_new_tokens, stop)
        fields = self._exact_fields(prompt, messages, named, min_width, normalize, request_id, sampling)
        return MapRequest(**fields, resolution=resolution, **limits)

    def _three(self, corners: Sequence[Weights] | None) -> Sequence[Weights]:
        if corners is None:
            if len(self.objectives) != 3:
                raise InvalidRequest(
                    f"corners is not given, and this bundle has {len(self.objectives)} objectives"
                    f" ({', '.join(self.objectives)}); allowed then: exactly 3; name three weight vectors as corners",
                    param="corners",
                )
            return [{name: 1.0} for name in self.objectives]
        if isinstance(corners, Mapping) or len(corners) != 3:
            found = "one mapping" if isinstance(corners, Mapping) else f"a list of {len(corners)} weight vectors"
            raise InvalidRequest(f"corners is {found}; allowed: a list of exactly 3 weight vectors", param="corners")
        return corners

    def _exact_fields(
        self,
        prompt: str | None,
        messages: Messages | None,
        corners: Mapping[str, Weights],
        min_width: float,
        normalize: bool,
        request_id: str | None,
        sampling: tuple[int, int, str | Sequence[str]],
    ) -> dict[str, Any]:
        """The fields shared by segments and maps. corners: by their names in errors; sampling: most and fewest tokens,
        stop strings."""
        check_width(min_width)
        first, *others = vectors = [self._named(name, each, normalize) for name, each in corners.items()]
        most, least, stop = sampling
        settings = sampling_of(max_new_tokens=most, min_new_tokens=least, stop=stop, seed=0)
        asked = self._reader.read(prompt, messages, "prompt")
        encoded = self._reader.encode(asked, vectors, "hidden")
        self._reader.check_context(encoded, settings, asked[0])
        return {
            "request_id": request_id or f"local-{next(self._numbers)}",
            "prompt_ids": encoded.ids,
            "weights": first,
            "sampling": settings,
            "stream": False,
            "lane_prompts": encoded.of_lanes,
            "others": tuple(others),
            "min_width": min_width,
        }

    def _named(self, name: str, weights: Weights, normalize: bool) -> tuple[float, ...]:
        """The vector of one corner; errors name the corner."""
        try:
            return self.resolve(weights, normalize=normalize).vector
        except InvalidWeights as error:
            param = (error.param or "weights").replace("weights", name, 1)
            raise InvalidWeights(f"{name}: {error.message.removeprefix('weights: ')}", param=param) from None
