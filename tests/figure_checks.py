"""What tests of figures ask of them: that they fit their page; and results of many layers."""

import re
from itertools import combinations
from typing import Any

from matplotlib.text import Text
from matplotlib.transforms import Bbox


def stretched(results, num_layers, num_texts):
    """Results of more layers and texts, by repeating those that there are."""

    def walk(section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        keys = list(section)
        if keys and all(re.fullmatch(r"layer_\d+", key) for key in keys):
            return {f"layer_{i}": walk(section[keys[i % len(keys)]]) for i in range(num_layers)}
        if keys and all(re.fullmatch(r"layer_\d+_to_\d+", key) for key in keys):
            pairs = {i: section[keys[i % len(keys)]] for i in range(num_layers - 1)}
            return {
                f"layer_{i}_to_{i + 1}": {**pair, "layers": [i, i + 1]} for i, pair in pairs.items()
            }
        found = {key: walk(part) for key, part in section.items()}
        if steps := found.get("transitions"):
            found["transitions"] = [
                {**steps[i % len(steps)], "from_layer": i, "to_layer": i + 1}
                for i in range(num_layers - 1)
            ]
        return found

    large: dict[str, Any] = walk(results)
    texts = list(large["individual_texts"].values())
    large["individual_texts"] = {f"text_{i}": texts[i % len(texts)] for i in range(num_texts)}
    if rows := large.get("memory_by_layer"):
        large["memory_by_layer"] = [{**rows[i % len(rows)], "layer": i} for i in range(num_layers)]
    return large


def words_of(figure):
    """Everything written in a figure, panels included, on one line."""
    written = figure.findobj(Text)
    return " ".join(" ".join(text.get_text().replace("\xa0", " ") for text in written).split())


def assert_fits(figure):
    """No panel leaves the page or lies upon another."""
    figure.get_layout_engine().execute(figure)
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    page = figure.bbox.padded(1.0)  # half a point: what antialiasing leaves over
    for box, ax in zip(boxes, figure.axes, strict=True):
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{ax.get_title()!r} leaves the page: {box} of {page}"
    for (a, first), (b, second) in combinations(zip(figure.axes, boxes, strict=True), 2):
        common = Bbox.intersection(first, second)
        # A point of overlap is the white border of a label's box.
        if common is not None and min(common.width, common.height) > figure.dpi / 72:
            raise AssertionError(f"{a.get_title()!r} and {b.get_title()!r} overlap")
