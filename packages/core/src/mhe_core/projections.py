"""Moved to mhe_core.regularizers.projections."""

from mhe_core._moved import moved

moved(__name__, "mhe_core.regularizers.projections")
