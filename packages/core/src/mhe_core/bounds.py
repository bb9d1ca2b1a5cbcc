"""Moved to mhe_core.diagnostics.bounds."""

from mhe_core._moved import moved

moved(__name__, "mhe_core.diagnostics.bounds")
