"""What docs/conventions.md says of other packages, for those that are installed here; scipy always is."""

from __future__ import annotations

import pytest

from benches import conventions

HERE = [row for row in conventions.ROWS if conventions.installed(row)]


@pytest.mark.parametrize("row", HERE, ids=lambda row: f"{row.package}: {row.call}")
@pytest.mark.filterwarnings("ignore::FutureWarning:xrft.*", "ignore::FutureWarning:powerbox.*")
def test_the_factor_to_another_package_is_as_the_page_says(row):
    conventions.check(row)


def test_every_row_is_on_the_page():
    page = conventions.PAGE.read_text()
    for row in conventions.ROWS:
        assert f"| {row.package} | {row.call} | {row.says} |" in page
