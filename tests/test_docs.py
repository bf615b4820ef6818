"""The pages that are made by code show what the code gives."""

import doctest
from pathlib import Path

import numpy as np
from PIL import Image

from rlagents import solving

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_gridworlds_page_shows_what_its_code_prints() -> None:
    failed, attempted = doctest.testfile(
        str(DOCS / "gridworld.md"), module_relative=False, encoding="utf-8", optionflags=doctest.FAIL_FAST
    )
    assert attempted > 15
    assert not failed


def test_the_gridworlds_picture_is_the_one_that_solve_draws(tmp_path: Path) -> None:
    solving.solve("gridworld", ["agent.discount=0.9"]).draw(tmp_path / "drawn.png")
    drawn, shown = (
        np.asarray(Image.open(file), np.float64) for file in (tmp_path / "drawn.png", DOCS / "gridworld.png")
    )
    assert drawn.shape == shown.shape == (240, 360, 3)
    assert np.abs(drawn - shown).mean() < 1  # letters may be drawn a little differently elsewhere
