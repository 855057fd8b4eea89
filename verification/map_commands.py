"""`plumecast map`: every figure of `verification.maps` from a forecast or products store, as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

FORMATS = (".png", ".svg", ".pdf")
WIDTH = 8.0  # inches: with 160 dots an inch a picture is 1280 wide


def draw_map(
    store: Annotated[Path, typer.Argument(help="forecast store, or products store (plumecast products)", metavar="F.zarr")],
    variable: Annotated[
        list[str] | None,
        typer.Option("--variable", "--channel", help="as 2m_temperature or geopotential_500; repeat it for a meteogram"),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="of those above; default: ensemble, with --truth stamps, with --point plume")
    ] = None,
    lead: Annotated[str, typer.Option(help="as 5d or 36h")] = "1d",
    init: Annotated[str | None, typer.Option(help="initialisation, as 2007-01-05T00; the first unless given")] = None,
    level: Annotated[int | None, typer.Option(help="hPa, if it is not in the variable's name")] = None,
    member: Annotated[int | None, typer.Option(help="field: this member instead of the ensemble mean")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="303.15 (SI units), '30 degC', q95 (of the climatology); spaghetti: repeat it"),
    ] = None,
    below: Annotated[bool, typer.Option("--below", help="probability of falling below the threshold")] = False,
    climatology: Annotated[Path | None, typer.Option(help="climatology store with quantiles: efi, thresholds like q95")] = None,
    truth: Annotated[Path | None, typer.Option(help="analysis store; its field or values are drawn too")] = None,
    point: Annotated[str | None, typer.Option(help="[NAME,]LATITUDE,LONGITUDE; in a products store the name")] = None,
    projection: Annotated[
        str | None, typer.Option(help="any of cartopy with its centre: Robinson, PlateCarree:180, Orthographic:10,60")
    ] = None,
    region: Annotated[str | None, typer.Option(help="WEST,EAST,SOUTH,NORTH in degrees, or Europe, tropics, Arctic ...")] = None,
    title: Annotated[str | None, typer.Option(help="instead of what is shown; the dates stay below it")] = None,
    dpi: Annotated[int, typer.Option(min=30, max=1200, help="dots an inch of a PNG; the figure is 8 inches wide")] = 160,
    out: Annotated[Path, typer.Option(help="the picture: .png, .svg or .pdf")] = Path("map.png"),
) -> None:
    """Draw a map, plume or meteogram of a forecast; it works offline.

    Example: plumecast map F.zarr --variable 2m_temperature --lead 5d --kind probability --threshold "30 degC" --out map.png

    \b
    field        ensemble mean, or --member 3; any variable of products
    ensemble     mean shaded, spread as lines
    stamps       every member small, with mean, spread and --truth
    spaghetti    the same few contours of every member; --threshold
    probability  of passing --threshold, or --below it
    efi          extreme forecast index; of a forecast: --climatology
    plume        every member at a --point through all leads
    meteogram    box and whiskers at a --point, a panel a variable
    tracks       of lows in all members; of products alone

    plumecast map F.zarr --point Bergen,60.39,5.32 --kind meteogram --out bergen.pdf

    plumecast map F.zarr --variable geopotential_500 --lead 7d --kind spaghetti --projection NorthPolarStereo
    """
    import io

    from data_pipeline.disk import write_bytes
    from data_pipeline.errors import InputError
    from verification.headline import parse_leads
    from verification.map_kinds import KINDS, Asked
    from verification.map_sources import channel_of, open_source, parse_projection, parse_region

    chosen = kind or ("plume" if point else "stamps" if truth else "ensemble")
    if chosen not in KINDS:
        raise InputError(f"--kind {kind!r} is not known; one of {', '.join(KINDS)}")
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {out}: expected a name that ends in {', '.join(FORMATS)}")
    frame: dict[str, Any] = {"extent": parse_region(region)} if region else {}
    if projection:
        frame["projection"] = parse_projection(projection, frame.get("extent"))
    if chosen != "stamps":
        frame["width"] = WIDTH
    source = open_source(store, init)
    if not variable and chosen not in ("meteogram", "tracks"):
        raise InputError(f"--variable is needed; {store} has {', '.join(source.labels)}")
    if variable and len(variable) > 1 and chosen != "meteogram":
        raise InputError(f"--kind {chosen} shows one --variable; a meteogram takes several")
    asked = Asked(
        [channel_of(label, level, source) for label in variable or []], parse_leads(lead)[0], member, threshold or [], below,
        climatology, truth, point, frame,
    )  # fmt: skip
    figure = KINDS[chosen](source, asked, title)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower(), dpi=dpi)
    write_bytes(out, picture.getvalue())
    typer.echo(f"map: {out}")
