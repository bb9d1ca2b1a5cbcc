"""Moved to mhe_core.registry."""

from mhe_core._moved import moved

moved(__name__, "mhe_core.registry")
