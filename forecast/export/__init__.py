"""Forecasts as files that others read: CF NetCDF and GRIB2, one file or one an initialisation."""

from forecast.export.files import Settings, export

__all__ = ["Settings", "export"]
