"""A figure of flat maps: rows and columns of hemisphere pairs, with names, keys and a title."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .errors import BrainfastError
from .files import atomic_path
from .flat_mesh import Raster, check_drawable, data_boxes, rasters
from .flat_plot import draw_cortex, draw_regions, region_names
from .map_colours import FAINT, INK, Pixels
from .vertex_space import Hemisphere, VertexSpace

DPI = 200
FORMATS = (".png", ".pdf", ".svg")
SIDES: dict[Hemisphere, str] = {"lh": "left hemisphere", "rh": "right hemisphere"}
MARGIN = 0.3  # inches around everything
LARGE = 3.0  # inches from which a hemisphere's regions are named


def check_picture(path: str | Path) -> None:
    """Refuse a name that says of no picture; ask before anything is run."""
    if Path(path).suffix.lower() not in FORMATS:
        wanted = f"a name that ends in {', '.join(FORMATS)}"
        raise BrainfastError(str(path), expected=wanted, got=repr(Path(path).suffix))


@dataclass(frozen=True)
class Sheet:
    """Lengths in inches; a cell holds the hemispheres that have data, in one scale."""

    figure: Figure
    parts: dict[Hemisphere, Raster]
    space: VertexSpace
    names: list[str]
    path: Path | None
    height: float  # of a hemisphere
    width: float
    left: float  # of the first column
    bottom: float  # of the last row
    rows: int

    @staticmethod
    def plan(
        space: VertexSpace,
        path: str | Path | None,
        rois: Sequence[str] | None,
        title: str,
        *,
        rows: int = 1,
        columns: int = 1,
        height: float = 6.0,
        foot: float = 1.4,  # room for the keys
        side: float = 0.0,  # room for the rows' names
        narrowest: float = 4.6,
    ) -> Sheet:
        """An empty sheet; whatever is wrong with space, regions or path is said here."""
        if path is not None:
            check_picture(path)
        check_drawable(space)
        names = region_names(space, rois)
        boxes = data_boxes(space)
        x0, x1, y0, y1 = next(iter(boxes.values()))
        unit = height / max(x1 - x0, y1 - y0)
        width, height = (x1 - x0) * unit, (y1 - y0) * unit
        content = columns * _cell(len(boxes), width, height) + (columns - 1) * MARGIN
        total = max(side + content + 2 * MARGIN, narrowest)
        head = (0.35 if title else 0.0) + (0.45 if columns == 1 else 0.6)
        figure = Figure((total, foot + rows * height + head), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        if title:
            y = 1 - 0.3 / figure.get_figheight()
            figure.text(0.5, y, title, ha="center", fontsize=13, weight="bold", color=INK)
        parts = rasters(boxes, round(max(width, height) * DPI))
        left = (total - content + side) / 2
        target = None if path is None else Path(path)
        return Sheet(figure, parts, space, names, target, height, width, left, foot, rows)

    @property
    def cell(self) -> float:
        """Width of a column."""
        return _cell(len(self.parts), self.width, self.height)

    def centre(self, column: int) -> float:
        """The middle of a column."""
        return self.left + column * (self.cell + MARGIN) + self.cell / 2

    def draw(
        self,
        colours: Callable[[Hemisphere, Raster], Pixels],  # -> [P,3]
        row: int = 0,
        column: int = 0,
        name: str = "",
        remark: str = "",
    ) -> None:
        """Both hemispheres in one cell; `name` stands above the column, `remark` in the cell."""
        axes: dict[Hemisphere, Axes] = {}
        bottom = self.bottom + (self.rows - 1 - row) * self.height
        large = self.height >= LARGE
        for place, (side, part) in enumerate(self.parts.items()):
            x = self.left + column * (self.cell + MARGIN) + place * (self.cell - self.width)
            label = f"{side} {row} {column}"
            axes[side] = self.add((x, bottom, self.width, self.height), label)
            draw_cortex(axes[side], side, part, colours(side, part), compass=large)
            if row == 0:
                text = SIDES[side] if large else SIDES[side][0].upper()
                axes[side].set_title(text, fontsize=9 if large else 7, color=FAINT, pad=4)
        width = 0.9 if large else 0.5
        draw_regions(axes, self.parts, self.space, self.names, width=width, labelled=large)
        if name:
            top = bottom + self.height + (0.34 if large else 0.26)
            self.write(self.centre(column), top, name, weight="bold", fontsize=10)
        if remark:
            self.write(self.centre(column), bottom + 0.06, remark, color=FAINT, fontsize=8)

    def name_row(self, row: int, name: str) -> None:
        """Write `name` beside a row."""
        y = self.bottom + (self.rows - 0.5 - row) * self.height
        style = {"rotation": 90, "va": "center", "weight": "bold", "fontsize": 10}
        self.write(self.left - 0.25, y, name, **style)

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text centred at x, its baseline at y."""
        width, height = self.figure.get_size_inches()
        look: dict[str, Any] = {"ha": "center", "color": INK, **style}
        self.figure.text(x / width, y / height, text, **look)

    def add(self, box: tuple[float, float, float, float], label: str) -> Axes:
        """Axes at left, bottom, width, height."""
        width, height = self.figure.get_size_inches()
        left, bottom, w, h = box
        return self.figure.add_axes(
            (left / width, bottom / height, w / width, h / height), label=label
        )

    def key(self, column: int, width: float, height: float) -> Axes:
        """Axes for the key of a column."""
        return self.add((self.centre(column) - width / 2, 0.48, width, height), f"key {column}")

    def finish(self) -> Figure:
        """Write the file, if there is to be one, and give the figure."""
        if self.path is not None:
            kind = self.path.suffix[1:].lower()
            with atomic_path(self.path) as temporary:
                self.figure.savefig(temporary, format=kind, dpi=DPI)
        return self.figure


def _cell(hemispheres: int, width: float, height: float) -> float:
    return hemispheres * width + (hemispheres - 1) * 0.04 * height
