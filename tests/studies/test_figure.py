"""The figure of a study."""

from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mtl.report.style import figure_style
from mtl.studies.figure import draw_study
from mtl.studies.files import SHIPPED
from mtl.studies.reading import read_definition


@pytest.mark.parametrize("title", ["Short", "A title of many words that says all there is to say of a study, and more than that"])
def test_title_and_legend_lie_inside_the_figure_and_apart(title: str) -> None:
    definition = replace(read_definition(SHIPPED / "orl.yaml"), title=title)
    with figure_style():
        figure = draw_study(definition, [], quick=False)
        FigureCanvasAgg(figure).draw()
        boxes = [figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not boxes[0].overlaps(boxes[1])
