"""Profiles learned from choices: stored in the file of choices, served beside the bundle's own."""

from __future__ import annotations

import logging
import re
import threading

from emorl_core.bundles.bundle import NAME
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.choices.store import ChoiceStore
from emorl_core.errors import InvalidRequest, InvalidWeights
from emorl_core.frontend import Frontend
from server.settings import Settings

logger = logging.getLogger("emorl.server")
MOST = 1000  # per bundle


class LearnedProfiles:
    """The learned profiles of one deployment. Methods access the disk."""

    def __init__(self, ensemble: Frontend, settings: Settings) -> None:
        self._ensemble = ensemble
        self._path = settings.choices_file if settings.learn_profiles else None
        self._one_at_a_time = threading.Lock()

    @property
    def kept(self) -> bool:
        return self._path is not None

    def recall(self) -> None:
        """Serve the profiles learned with this bundle before. Raises `ChoicesError`."""
        if self._path is None:
            return
        spec = self._ensemble.spec
        kept = ChoiceStore(self._path).profiles(spec.name)
        fitting = {name: each for name, each in kept.items() if name not in spec.profiles and self._fits(each)}
        if len(fitting) < len(kept):
            missing = len(kept) - len(fitting)
            logger.warning("%d learned profiles do not fit this bundle, or have the name of one of its own", missing)
        self._ensemble.learned = fitting

    def keep(self, name: str, profile: ProfileSpec) -> None:
        """Store a profile, replacing an earlier one of that name, and serve it from now on.

        Raises:
            InvalidRequest: storing is off, the name is not allowed, or there are too many.
            ChoicesError: the file cannot be written.
        """
        if self._path is None:
            raise InvalidRequest(
                "store is true; this server keeps no learned profiles (its setting learn_profiles is off)",
                param="store",
            )
        if not re.fullmatch(NAME, name):
            raise InvalidRequest(
                f"user is {name!r}; allowed as a profile's name: letters, digits and _ . -, a letter or digit first",
                param="user",
            )
        if name in self._ensemble.spec.profiles:
            raise InvalidRequest(f"user is {name!r}; the bundle has a profile of that name", param="user")
        with self._one_at_a_time:
            learned = dict(self._ensemble.learned)
            if name not in learned and len(learned) >= MOST:
                raise InvalidRequest(f"{MOST} learned profiles are kept; allowed: no more", param="store")
            ChoiceStore(self._path).keep_profile(self._ensemble.name, name, profile)
            self._ensemble.learned = {**learned, name: profile}

    def _fits(self, profile: ProfileSpec) -> bool:
        try:
            profile.check(self._ensemble.lanes)
        except InvalidWeights:
            return False
        return True
