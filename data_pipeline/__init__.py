"""From any ERA5-style archive to analysis-ready zarr: sources, regridding, crash-safe stores, statistics, climatology, batches."""
