"""The cohort whose label shows in the grain of its nodules."""

from tests.pipelines.probing.conftest import grained_cohort as grained_cohort
