"""Packages of the distribution; pyproject.toml has the rest."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["amrg", "amrg.*"]), "amrg.kernels", "amrg.kernels.hopfield"])
